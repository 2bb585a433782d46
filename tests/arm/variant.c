/* Says which variant of the library it is linked with a context runs, or why there is none. */
#include <stdio.h>
#include <stdlib.h>

#include "tcomp.h"

int main(int count, char **arguments) {
  tcomp_options options = {.struct_bytes = sizeof options, .threads = 1};
  options.variant = count > 1 && *arguments[1] != '\0' ? arguments[1] : NULL;
  options.cpus = count > 2 ? atoi(arguments[2]) : TCOMP_CPUS_ALL;
  tcomp_context *context;
  tcomp_status status = tcomp_create(&options, &context);
  if (status != TCOMP_OK) {
    printf("%d: %s", status, tcomp_error(NULL));
    return 1;
  }
  printf("%s", tcomp_variant(context));
  tcomp_destroy(context);
  return 0;
}
