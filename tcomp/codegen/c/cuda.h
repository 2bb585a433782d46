/* Models on NVIDIA's GPUs, by the driver alone: what the generated model.c gives to it and calls. */
#ifndef TCOMP_CUDA_H
#define TCOMP_CUDA_H

#include "cuda_launch.h"
#include "model_info.h"

typedef struct {
  int32_t stream;
  int32_t first_wait, wait_count; /* of tcomp_cuda_waits */
  int32_t is_awaited;             /* by steps of other streams */
} tcomp_cuda_step_info;

/* How a variant packs constants, once; they are packed_bytes afterwards. */
typedef struct {
  int32_t first_image; /* of the code that packs, which follows the variant's other code and is needed once */
  size_t packed_bytes, arena_bytes;
  int32_t (*pack)(const tcomp_frame *frame); /* zero when all of it is under way; NULL: there is nothing to pack */
} tcomp_cuda_packing_info;

extern const tcomp_cuda_packing_info tcomp_cuda_packings[]; /* of each variant */
extern const size_t tcomp_cuda_source_bytes;                /* at the end of the weights: what they are packed from */
extern const tcomp_cuda_step_info tcomp_cuda_steps[]; /* of tcomp_model */
extern const int32_t tcomp_cuda_waits[];              /* steps of other streams that must have ended */
extern const int32_t tcomp_cuda_stream_count;
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
