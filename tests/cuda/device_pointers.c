/* Runs `network` on tensors in the GPU's memory: reads the image from standard input, writes the scores. */
#include <dlfcn.h>
#include <stdio.h>

#include "network.h"

typedef int (*retain_function)(void **, int);
typedef int (*enter_function)(void *);
typedef int (*allocate_function)(uint64_t *, size_t);
typedef int (*upload_function)(uint64_t, const void *, size_t);
typedef int (*download_function)(void *, uint64_t, size_t);

static float image[NETWORK_INPUT0_ELEMENTS], scores[NETWORK_OUTPUT0_ELEMENTS];

int main(void) {
  tcomp_context *context;
  uint64_t x, y;
  if (tcomp_create(NULL, &context) != TCOMP_OK) return puts(tcomp_error(NULL)), 1;
  void *driver = dlopen("libcuda.so.1", RTLD_NOW), *primary;
  retain_function retain = (retain_function)dlsym(driver, "cuDevicePrimaryCtxRetain");
  enter_function enter = (enter_function)dlsym(driver, "cuCtxSetCurrent");
  allocate_function allocate = (allocate_function)dlsym(driver, "cuMemAlloc_v2");
  upload_function upload = (upload_function)dlsym(driver, "cuMemcpyHtoD_v2");
  download_function download = (download_function)dlsym(driver, "cuMemcpyDtoH_v2");
  if (retain(&primary, 0) != 0 || enter(primary) != 0) return 9;
  if (fread(image, sizeof image, 1, stdin) != 1) return 2;
  if (allocate(&x, sizeof image + 16) != 0 || allocate(&y, sizeof scores) != 0) return 3;
  if (upload(x, image, sizeof image) != 0) return 4;
  tcomp_buffer input = {(void *)(uintptr_t)x, sizeof image}, output = {(void *)(uintptr_t)y, sizeof scores};
  tcomp_buffer odd = {(void *)(uintptr_t)(x + 4), sizeof image};
  if (tcomp_run(context, &odd, 1, &output, 1) != TCOMP_ERROR_ARGUMENT) return 5;
  if (tcomp_run(context, &input, 1, &output, 1) != TCOMP_OK) return puts(tcomp_error(context)), 6;
  if (download(scores, y, sizeof scores) != 0) return 7;
  if (fwrite(scores, sizeof scores, 1, stdout) != 1) return 8;
  tcomp_destroy(context);
  return 0;
}
