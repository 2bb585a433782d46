/* Weights in the device's memory: as the library has them, and packed here where that makes them larger. */
#include "cuda_device.h"

static tcomp_status pack(tcomp_device *device, const char *weights, const tcomp_cuda_packing_info *packing,
                         address *sources, address *arena, char *text) {
  const char *begin = weights + (tcomp_model.weights_bytes - tcomp_cuda_source_bytes);
  device->current = device->streams[0];
  TRY("memory for packed weights", tcomp_cuda.allocate(&device->packed, packing->packed_bytes));
  if (packing->arena_bytes > 0) TRY("memory to pack weights", tcomp_cuda.allocate(arena, packing->arena_bytes));
  if (tcomp_cuda_source_bytes > 0) {
    TRY("memory to pack weights", tcomp_cuda.allocate(sources, tcomp_cuda_source_bytes));
    TRY("copying the weights", tcomp_cuda.upload(*sources, begin, tcomp_cuda_source_bytes, device->current));
  }
  tcomp_frame frame = {.arena = (char *)(uintptr_t)*arena,
                       .weights = (const char *)(uintptr_t)device->weights,
                       .device = device,
                       .packed = (char *)(uintptr_t)device->packed,
                       .sources = (const char *)(uintptr_t)*sources};
  if (packing->pack(&frame) != 0) return tcomp_cuda_refused(text, device->problem, device->code);
  TRY("packing the weights", tcomp_cuda.synchronize(device->current));
  return TCOMP_OK;
}

tcomp_status tcomp_cuda_place_weights(tcomp_device *device, const char *weights, const tcomp_cuda_packing_info *packing,
                                      char *text) {
  size_t kept = tcomp_model.weights_bytes - tcomp_cuda_source_bytes;
  if (kept > 0) {
    TRY("memory for weights", tcomp_cuda.allocate(&device->weights, kept));
    TRY("copying the weights", tcomp_cuda.upload(device->weights, weights, kept, device->streams[0]));
  }
  TRY("copying the weights", tcomp_cuda.synchronize(device->streams[0]));
  if (packing->pack == NULL) return TCOMP_OK;
  address sources = 0, arena = 0;
  tcomp_status status = pack(device, weights, packing, &sources, &arena, text);
  if (sources != 0) tcomp_cuda.release_memory(sources);
  if (arena != 0) tcomp_cuda.release_memory(arena);
  return status;
}
