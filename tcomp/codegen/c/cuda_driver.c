/* NVIDIA's driver, loaded when it is needed first. */
#define _GNU_SOURCE
#include "cuda_driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

tcomp_cuda_functions tcomp_cuda;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static char problem[256]; /* empty when the driver is loaded */

static void load(void) {
  void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) {
    snprintf(problem, sizeof problem,
             "no NVIDIA driver here: libcuda.so.1 is not to be loaded; install the driver of the GPU");
    return;
  }
#define LOAD(name, symbol, parameters)                                                                     \
  if ((*(void **)&tcomp_cuda.name = dlsym(library, symbol)) == NULL) {                                     \
    snprintf(problem, sizeof problem, "the NVIDIA driver has no %s; install a newer one", symbol);         \
    return;                                                                                                \
  }
  TCOMP_CUDA_FUNCTIONS(LOAD)
#undef LOAD
#define LOAD_IF_THERE(name, symbol, parameters) *(void **)&tcomp_cuda.name = dlsym(library, symbol);
  TCOMP_CUDA_MAP_FUNCTIONS(LOAD_IF_THERE)
#undef LOAD_IF_THERE
}

const char *tcomp_cuda_load(int needs_maps) {
  pthread_once(&once, load);
  if (problem[0] != '\0') return problem;
#define REQUIRE(name, symbol, parameters)                                                                  \
  if (needs_maps && tcomp_cuda.name == NULL)                                                               \
    return "the NVIDIA driver has no " symbol "; install a newer one";
  TCOMP_CUDA_MAP_FUNCTIONS(REQUIRE)
#undef REQUIRE
  return NULL;
}

const char *tcomp_cuda_words(int code) {
  const char *text = NULL;
  return tcomp_cuda.error_string(code, &text) == 0 && text != NULL ? text : "unknown error";
}
