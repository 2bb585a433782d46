/* Included before a program: the functions of tcomp.h come from the library that the macro LIBRARY names,
 * which finds other functions in the libraries it needs before it looks into the program's. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include "tcomp.h"

static void *opened(const char *name) {
  static void *library;
  if (library == NULL) library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
  void *found = library == NULL ? NULL : dlsym(library, name);
  if (found == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    exit(4);
  }
  return found;
}

#define OPENED(name) ((__typeof__(&name))opened(#name))
#define tcomp_input_count OPENED(tcomp_input_count)
#define tcomp_output_count OPENED(tcomp_output_count)
#define tcomp_input OPENED(tcomp_input)
#define tcomp_output OPENED(tcomp_output)
#define tcomp_create OPENED(tcomp_create)
#define tcomp_run OPENED(tcomp_run)
#define tcomp_error OPENED(tcomp_error)
#define tcomp_destroy OPENED(tcomp_destroy)
