/* Programs that test the C interface end at the first condition that does not hold. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                               \
  if (!(condition)) {                                                                  \
    fprintf(stderr, "%s:%d: %s; %s\n", __FILE__, __LINE__, #condition, tcomp_error(NULL)); \
    _Exit(1);                                                                          \
  }

#define SAYS(context, text) CHECK(strstr(tcomp_error(context), text) != NULL)

#endif
