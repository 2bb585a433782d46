/* What the generated file of a model (model.c) gives to the runtime. */
#ifndef TCOMP_MODEL_INFO_H
#define TCOMP_MODEL_INFO_H

#include "clock.h"
#include "pool.h"

#define TCOMP_DIGEST_BYTES 32

/* Where the tensors of one run are. */
typedef struct {
  char *arena;
  const char *weights;
  void *const *inputs;
  void *const *outputs;
  uint64_t *nanoseconds; /* NULL: not profiled */
  tcomp_pool *pool;      /* knows whether the run is cancelled */
} tcomp_frame;

/* The code for one kind of CPU. */
typedef struct {
  const char *name;
  const char *features; /* that it needs, LLVM's names with commas between */
  /* Runs all steps; -1 when all went well, else the number of the step that failed or was not begun. */
  int32_t (*run)(const tcomp_frame *frame);
} tcomp_variant_info;

/* A core that names itself, and the number of the variant for it. */
typedef struct {
  uint32_t core; /* implementer << 12 | part */
  int32_t variant;
} tcomp_core;

typedef struct {
  const char *name;
  const char *target;
  const char *features;
  size_t arena_bytes;
  size_t weights_bytes;
  const char *weights; /* NULL: separate */
  unsigned char weights_digest[TCOMP_DIGEST_BYTES];
  int32_t input_count, output_count, step_count;
  const tcomp_tensor *inputs, *outputs;
  const char *const *step_labels;
  int32_t variant_count, core_count;
  const tcomp_variant_info *variants; /* the one to prefer first */
  const tcomp_core *cores;            /* slowest first */
  /* What other programs read in the file: named here, or the linker would drop it as unused. */
  const void *stamp, *about;
} tcomp_model_info;

extern const tcomp_model_info tcomp_model;

#define TCOMP_PUBLIC __attribute__((visibility("default")))
extern const tcomp_api tcomp_functions; /* of this library */

#endif
