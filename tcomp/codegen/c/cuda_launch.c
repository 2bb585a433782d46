/* Functions of modules, and their launches. Source: CUDA Driver API reference. */
#include "cuda_launch.h"

#define LARGE_SHARED 8   /* CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES */
#define FROM_256_BYTES 3 /* CU_TENSOR_MAP_L2_PROMOTION_L2_256B */

int tcomp_cuda_find(const tcomp_cuda_launch_info *launch, handle module, handle *function) {
  int code = tcomp_cuda.module_function(function, module, launch->symbol);
  if (code != 0 || launch->dynamic_shared_bytes == 0) return code;
  return tcomp_cuda.function_attribute(*function, LARGE_SHARED, (int)launch->dynamic_shared_bytes);
}

static int encode(const tcomp_cuda_map_info *info, const void *const *arguments, tensor_map *map) {
  static const uint32_t every[TCOMP_CUDA_MAP_RANK] = {1, 1, 1, 1, 1};
  address tensor = (address)((uintptr_t)arguments[info->parameter] + info->begin);
  uint32_t rank = (uint32_t)info->rank;
  if (info->steps[0] == 0)
    return tcomp_cuda.encode_tiles(map, info->type, rank, tensor, info->extents, info->strides, info->box, every, 0,
                                   info->swizzle, FROM_256_BYTES, 0);
  return tcomp_cuda.encode_pixels(map, info->type, rank, tensor, info->extents, info->strides, info->lower, info->upper,
                                  info->box[0], info->box[1], info->steps, 0, info->swizzle, FROM_256_BYTES, 0);
}

/* Maps are made of the pointers that a launch has. A graph keeps them, and is recorded again for other pointers. */
int tcomp_cuda_start(const tcomp_cuda_launch_info *launch, handle function, handle stream,
                     const void *const *arguments, int32_t argument_count) {
  tensor_map maps[launch->map_count + 1];
  void *addresses[argument_count + launch->map_count + 1];
  const uint32_t *g = launch->grid, *b = launch->block;
  for (int32_t i = 0; i < argument_count; i++) addresses[i] = (void *)&arguments[i];
  for (int32_t i = 0; i < launch->map_count; i++) {
    int code = encode(&tcomp_cuda_maps[launch->first_map + i], arguments, &maps[i]);
    if (code != 0) return code;
    addresses[argument_count + i] = &maps[i];
  }
  return tcomp_cuda.launch(function, g[0], g[1], g[2], b[0], b[1], b[2], launch->dynamic_shared_bytes, stream, addresses,
                           NULL);
}
