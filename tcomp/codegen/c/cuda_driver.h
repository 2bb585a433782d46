/* NVIDIA's driver, loaded at run time. Source: CUDA Driver API reference. */
#ifndef TCOMP_CUDA_DRIVER_H
#define TCOMP_CUDA_DRIVER_H

#include <stddef.h>
#include <stdint.h>

#include "tcomp.h"

#define TCOMP_CUDA_OUT_OF_MEMORY 2 /* CUDA_ERROR_OUT_OF_MEMORY */

typedef void *handle;
typedef uint64_t address; /* CUdeviceptr */

typedef struct {
  _Alignas(128) uint64_t opaque[16];
} tensor_map; /* CUtensorMap */

/* name in C, name in the library, parameters */
#define TCOMP_CUDA_FUNCTIONS(F)                                                                                        \
  F(init, "cuInit", (unsigned))                                                                             \
  F(error_string, "cuGetErrorString", (int, const char **))                                                 \
  F(device_count, "cuDeviceGetCount", (int *))                                                              \
  F(device_get, "cuDeviceGet", (int *, int))                                                                \
  F(device_name, "cuDeviceGetName", (char *, int, int))                                                     \
  F(device_attribute, "cuDeviceGetAttribute", (int *, int, int))                                            \
  F(retain, "cuDevicePrimaryCtxRetain", (handle *, int))                                                    \
  F(release, "cuDevicePrimaryCtxRelease_v2", (int))                                                         \
  F(current, "cuCtxGetCurrent", (handle *))                                                                 \
  F(current_device, "cuCtxGetDevice", (int *))                                                              \
  F(push, "cuCtxPushCurrent_v2", (handle))                                                                  \
  F(pop, "cuCtxPopCurrent_v2", (handle *))                                                                  \
  F(allocate, "cuMemAlloc_v2", (address *, size_t))                                                         \
  F(release_memory, "cuMemFree_v2", (address))                                                              \
  F(upload, "cuMemcpyHtoDAsync_v2", (address, const void *, size_t, handle))                                \
  F(download, "cuMemcpyDtoHAsync_v2", (void *, address, size_t, handle))                                    \
  F(fill, "cuMemsetD8Async", (address, unsigned char, size_t, handle))                                      \
  F(move, "cuMemcpyDtoDAsync_v2", (address, address, size_t, handle))                                       \
  F(allocate_locked, "cuMemHostAlloc", (void **, size_t, unsigned))                                         \
  F(release_locked, "cuMemFreeHost", (void *))                                                              \
  F(pointer_attribute, "cuPointerGetAttribute", (void *, int, address))                                     \
  F(stream_create, "cuStreamCreate", (handle *, unsigned))                                                  \
  F(stream_destroy, "cuStreamDestroy_v2", (handle))                                                         \
  F(synchronize, "cuStreamSynchronize", (handle))                                                           \
  F(wait_event, "cuStreamWaitEvent", (handle, handle, unsigned))                                            \
  F(is_capturing, "cuStreamIsCapturing", (handle, int *))                                                   \
  F(module_load, "cuModuleLoadData", (handle *, const void *))                                              \
  F(module_unload, "cuModuleUnload", (handle))                                                              \
  F(module_function, "cuModuleGetFunction", (handle *, handle, const char *))                               \
  F(function_attribute, "cuFuncSetAttribute", (handle, int, int))                                           \
  F(launch, "cuLaunchKernel",                                                                               \
    (handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, handle, void **, void **)) \
  F(event_create, "cuEventCreate", (handle *, unsigned))                                                    \
  F(event_destroy, "cuEventDestroy_v2", (handle))                                                           \
  F(event_record, "cuEventRecord", (handle, handle))                                                        \
  F(event_synchronize, "cuEventSynchronize", (handle))                                                      \
  F(event_elapsed, "cuEventElapsedTime", (float *, handle, handle))                                         \
  F(capture_begin, "cuStreamBeginCapture_v2", (handle, int))                                                \
  F(capture_end, "cuStreamEndCapture", (handle, handle *))                                                  \
  F(graph_instantiate, "cuGraphInstantiateWithFlags", (handle *, handle, unsigned long long))               \
  F(graph_launch, "cuGraphLaunch", (handle, handle))                                                        \
  F(graph_destroy, "cuGraphDestroy", (handle))                                                              \
  F(graph_release, "cuGraphExecDestroy", (handle))

/* What only libraries with code for sm_90a need, and drivers before CUDA 12 do not have. */
#define TCOMP_CUDA_MAP_FUNCTIONS(F)                                                                          \
  F(encode_tiles, "cuTensorMapEncodeTiled",                                                                 \
    (tensor_map *, int, uint32_t, address, const uint64_t *, const uint64_t *, const uint32_t *,            \
     const uint32_t *, int, int, int, int))                                                                 \
  F(encode_pixels, "cuTensorMapEncodeIm2col",                                                               \
    (tensor_map *, int, uint32_t, address, const uint64_t *, const uint64_t *, const int32_t *,             \
     const int32_t *, uint32_t, uint32_t, const uint32_t *, int, int, int, int))

typedef struct {
#define TCOMP_CUDA_FIELD(name, symbol, parameters) int(*name) parameters;
  TCOMP_CUDA_FUNCTIONS(TCOMP_CUDA_FIELD)
  TCOMP_CUDA_MAP_FUNCTIONS(TCOMP_CUDA_FIELD)
#undef TCOMP_CUDA_FIELD
} tcomp_cuda_functions;

extern tcomp_cuda_functions tcomp_cuda; /* once tcomp_cuda_load has answered NULL */

/* Load the driver, once: NULL, or what is wrong with it. */
const char *tcomp_cuda_load(int needs_maps);

/* What the driver says of a code. */
const char *tcomp_cuda_words(int code);

#endif
