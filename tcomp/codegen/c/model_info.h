/* What the generated file of a model (model.c) gives to the runtime. */
#ifndef TCOMP_MODEL_INFO_H
#define TCOMP_MODEL_INFO_H

#include "clock.h"
#include "pool.h"

#define TCOMP_DIGEST_BYTES 32

typedef struct tcomp_device tcomp_device; /* what a context has in a device other than the CPU */
typedef struct tcomp_placed tcomp_placed; /* weights and code there, of all contexts that share them */

/* Where the tensors of one run are: all in the memory of `device` if there is one. */
typedef struct {
  char *arena;
  const char *weights;
  void *const *inputs;
  void *const *outputs;
  uint64_t *nanoseconds; /* NULL: not profiled */
  tcomp_pool *pool;      /* knows whether the run is cancelled */
  tcomp_device *device;
  /* On GPUs: constants that it packed itself; what it packs them from, while it does. */
  char *packed;
  const char *sources;
} tcomp_frame;

/* The code for one kind of CPU. */
typedef struct {
  const char *name;
  const char *features; /* that it needs, LLVM's names with commas between */
  /* Runs all steps; -1 when all went well, else the number of the step that failed or was not begun. */
  int32_t (*run)(const tcomp_frame *frame);
} tcomp_variant_info;

/* How models run on another device than the CPU. Texts of errors go to `text`, of TCOMP_ERROR_BYTES. */
typedef struct {
  /* Puts weights, which are in the CPU's memory, and the code for the device there. */
  tcomp_status (*place)(const tcomp_options *options, const char *weights, tcomp_placed **placed, char *text);
  void (*remove)(tcomp_placed *placed);
  /* `placed` is there until `device` is destroyed. Refuses options that it does not serve. */
  tcomp_status (*create)(const tcomp_options *options, const tcomp_placed *placed, tcomp_device **device,
                         const tcomp_variant_info **variant, char *text);
  void (*destroy)(tcomp_device *device);
  /* Runs all steps of `variant`; inputs and outputs of `frame` are in the CPU's memory or the device's. Sets
   * *step as `run` of the variant answers. */
  tcomp_status (*run)(tcomp_device *device, const tcomp_variant_info *variant, const tcomp_frame *frame,
                      int32_t *step, char *text);
  /* As `run`, in a stream of the caller's and without waiting for the end. */
  tcomp_status (*enqueue)(tcomp_device *device, const tcomp_variant_info *variant, const tcomp_frame *frame,
                          void *stream, int32_t *step, char *text);
} tcomp_backend;

#define TCOMP_ERROR_BYTES 512

/* Writes the text of an error, of TCOMP_ERROR_BYTES, and answers its status. */
__attribute__((format(printf, 3, 4))) tcomp_status tcomp_fail(char *text, tcomp_status status, const char *format,
                                                              ...);

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
  const tcomp_backend *backend; /* NULL: the CPU */
} tcomp_model_info;

extern const tcomp_model_info tcomp_model;

#define TCOMP_PUBLIC __attribute__((visibility("default")))
extern const tcomp_api tcomp_functions; /* of this library */

#endif
