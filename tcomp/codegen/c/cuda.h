/* Models on NVIDIA's GPUs, by the driver alone: what the generated model.c gives to it and calls. */
#ifndef TCOMP_CUDA_H
#define TCOMP_CUDA_H

#include "model_info.h"

typedef struct {
  int32_t image; /* of tcomp_cuda_images */
  const char *symbol;
  uint32_t grid[3], block[3], dynamic_shared_bytes;
  int32_t first_map, map_count; /* of tcomp_cuda_maps: arguments behind the kernel's own */
} tcomp_cuda_launch_info;

#define TCOMP_CUDA_MAP_RANK 3
typedef struct {
  int32_t parameter; /* whose tensor is mapped */
  int32_t type, swizzle;
  uint64_t extents[TCOMP_CUDA_MAP_RANK], strides[TCOMP_CUDA_MAP_RANK - 1];
  uint32_t box[TCOMP_CUDA_MAP_RANK];
} tcomp_cuda_map_info; /* for cuTensorMapEncodeTiled */

typedef struct {
  const void *data;   /* a cubin, or that with PTX for newer GPUs */
  int32_t capability; /* 80 for 8.0 */
  int32_t exact;      /* whether it runs on no other capability */
} tcomp_cuda_image;

typedef struct {
  int32_t stream;
  int32_t first_wait, wait_count; /* of tcomp_cuda_waits */
  int32_t is_awaited;             /* by steps of other streams */
} tcomp_cuda_step_info;

extern const tcomp_cuda_step_info tcomp_cuda_steps[]; /* of tcomp_model */
extern const int32_t tcomp_cuda_waits[];              /* steps of other streams that must have ended */
extern const int32_t tcomp_cuda_stream_count;
extern const tcomp_cuda_image tcomp_cuda_images[];
extern const tcomp_cuda_launch_info tcomp_cuda_launches[];
extern const tcomp_cuda_map_info tcomp_cuda_maps[];
extern const int32_t tcomp_cuda_launch_count, tcomp_cuda_map_count, tcomp_cuda_most_maps; /* the latter: of a launch */
extern const int32_t tcomp_cuda_variant_images[]; /* the first image of each variant, and the end */

extern const tcomp_backend tcomp_cuda_backend;

/* Start launches first .. first + count - 1 with the same arguments; zero when they are under way. */
int32_t tcomp_cuda_launch(const tcomp_frame *frame, int32_t first, int32_t count, const void *const *arguments,
                          int32_t argument_count);
int32_t tcomp_cuda_copy(const tcomp_frame *frame, void *to, const void *from, size_t bytes);

/* Around the work of a step: its stream, what it waits for, its time where the run is profiled. */
int32_t tcomp_cuda_begin(const tcomp_frame *frame, int32_t step);
int32_t tcomp_cuda_end(const tcomp_frame *frame, int32_t step);

#endif
