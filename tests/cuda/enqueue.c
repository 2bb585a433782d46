/* Runs `classifier` in a stream: reads the input from standard input, writes the output. */
#include <dlfcn.h>
#include <stdio.h>

#include "classifier.h"

typedef int (*retain_function)(void **, int);
typedef int (*enter_function)(void *);
typedef int (*allocate_function)(uint64_t *, size_t);
typedef int (*create_function)(void **, unsigned);
typedef int (*upload_function)(uint64_t, const void *, size_t, void *);
typedef int (*download_function)(void *, uint64_t, size_t, void *);
typedef int (*wait_function)(void *);

static float x[CLASSIFIER_INPUT0_ELEMENTS], y[CLASSIFIER_OUTPUT0_ELEMENTS];

int main(void) {
  tcomp_context *context;
  uint64_t on_device[2];
  void *stream;
  if (tcomp_create(NULL, &context) != TCOMP_OK) return puts(tcomp_error(NULL)), 1;
  void *driver = dlopen("libcuda.so.1", RTLD_NOW), *primary;
  retain_function retain = (retain_function)dlsym(driver, "cuDevicePrimaryCtxRetain");
  enter_function enter = (enter_function)dlsym(driver, "cuCtxSetCurrent");
  allocate_function allocate = (allocate_function)dlsym(driver, "cuMemAlloc_v2");
  create_function create = (create_function)dlsym(driver, "cuStreamCreate");
  upload_function upload = (upload_function)dlsym(driver, "cuMemcpyHtoDAsync_v2");
  download_function download = (download_function)dlsym(driver, "cuMemcpyDtoHAsync_v2");
  wait_function wait = (wait_function)dlsym(driver, "cuStreamSynchronize");
  if (retain(&primary, 0) != 0 || enter(primary) != 0) return 9;
  if (fread(x, sizeof x, 1, stdin) != 1) return 2;
  if (allocate(&on_device[0], sizeof x) != 0 || allocate(&on_device[1], sizeof y) != 0) return 3;
  if (create(&stream, 1) != 0 || upload(on_device[0], x, sizeof x, stream) != 0) return 4;
  tcomp_buffer input = {(void *)(uintptr_t)on_device[0], sizeof x}, output = {(void *)(uintptr_t)on_device[1], sizeof y};
  if (tcomp_api_classifier()->enqueue(context, &input, 1, &output, 1, stream) != TCOMP_OK)
    return puts(tcomp_error(context)), 5;
  if (download(y, on_device[1], sizeof y, stream) != 0 || wait(stream) != 0) return 6;
  tcomp_destroy(context);
  return fwrite(y, sizeof y, 1, stdout) != 1;
}
