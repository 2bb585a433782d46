/* Launches of kernels: what generated files say of them, and how they begin. */
#ifndef TCOMP_CUDA_LAUNCH_H
#define TCOMP_CUDA_LAUNCH_H

#include "cuda_driver.h"

typedef struct {
  int32_t image; /* of tcomp_cuda_images */
  const char *symbol;
  uint32_t grid[3], block[3], dynamic_shared_bytes;
  int32_t first_map, map_count; /* of tcomp_cuda_maps: arguments behind the kernel's own */
} tcomp_cuda_launch_info;

#define TCOMP_CUDA_MAP_RANK 5 /* at most */
typedef struct {
  int32_t parameter; /* whose tensor is mapped */
  int32_t type, swizzle, rank;
  uint64_t begin; /* bytes from the tensor's address on */
  uint64_t extents[TCOMP_CUDA_MAP_RANK], strides[TCOMP_CUDA_MAP_RANK - 1];
  uint32_t box[TCOMP_CUDA_MAP_RANK];   /* channels and pixels, where these are walked over */
  uint32_t steps[TCOMP_CUDA_MAP_RANK]; /* from pixel to pixel; 0 where none are walked over */
  int32_t lower[TCOMP_CUDA_MAP_RANK - 2], upper[TCOMP_CUDA_MAP_RANK - 2];
} tcomp_cuda_map_info; /* for cuTensorMapEncodeTiled, or cuTensorMapEncodeIm2col */

typedef struct {
  const void *data;   /* a cubin, or that with PTX for newer GPUs */
  int32_t capability; /* 80 for 8.0 */
  int32_t exact;      /* whether it runs on no other capability */
} tcomp_cuda_image;

extern const tcomp_cuda_image tcomp_cuda_images[];
extern const tcomp_cuda_launch_info tcomp_cuda_launches[];
extern const tcomp_cuda_map_info tcomp_cuda_maps[];
extern const int32_t tcomp_cuda_launch_count, tcomp_cuda_map_count;

/* The function of a launch, allowed to use its shared memory; a CUresult. */
int tcomp_cuda_find(const tcomp_cuda_launch_info *launch, handle module, handle *function);

/* Start a launch in a stream; a CUresult. */
int tcomp_cuda_start(const tcomp_cuda_launch_info *launch, handle function, handle stream,
                     const void *const *arguments, int32_t argument_count);

#endif
