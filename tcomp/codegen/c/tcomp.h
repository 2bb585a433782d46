/* The C interface of a compiled model: the same for all models.
 *
 * A library holds one model. Everything a call needs is in a context, so several contexts, on several
 * threads, and several libraries work side by side. One context runs one inference at a time; a second
 * call with the same context waits.
 *
 *     tcomp_context *context;
 *     if (tcomp_create(NULL, &context) != TCOMP_OK) { puts(tcomp_error(NULL)); return 1; }
 *     tcomp_buffer input = {image, sizeof image}, output = {scores, sizeof scores};
 *     if (tcomp_run(context, &input, 1, &output, 1) != TCOMP_OK) puts(tcomp_error(context));
 *     tcomp_destroy(context);
 *
 * Versions count up. A version has all that those before it have, with the same meaning, layout and
 * numbers: a program runs with every library whose tcomp_abi_version() is at least the TCOMP_ABI_VERSION
 * of its header.
 */
#ifndef TCOMP_H
#define TCOMP_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TCOMP_ABI_VERSION 4

typedef enum {
  TCOMP_OK = 0,
  TCOMP_ERROR_ARGUMENT = 1, /* NULL, a wrong count, size or alignment, or outputs that overlap */
  TCOMP_ERROR_CPU = 2,      /* the CPU lacks what the library needs, or there is no such GPU or driver */
  TCOMP_ERROR_MEMORY = 3,   /* out of memory */
  TCOMP_ERROR_WEIGHTS = 4,  /* the weights are missing, unreadable or not those of this model */
  TCOMP_ERROR_RUN = 5,      /* a kernel failed: no memory for its workspace, too few threads, or the GPU */
  TCOMP_CANCELLED = 6       /* version 2: the run was stopped; its outputs hold anything */
} tcomp_status;

typedef enum {
  TCOMP_FLOAT16 = 0,
  TCOMP_BFLOAT16 = 1,
  TCOMP_FLOAT32 = 2,
  TCOMP_FLOAT64 = 3,
  TCOMP_INT8 = 4,
  TCOMP_INT16 = 5,
  TCOMP_INT32 = 6,
  TCOMP_INT64 = 7,
  TCOMP_UINT8 = 8,
  TCOMP_UINT16 = 9,
  TCOMP_UINT32 = 10,
  TCOMP_UINT64 = 11,
  TCOMP_BOOL = 12, /* one byte, 0 or 1 */
  TCOMP_FLOAT8_E4M3FN = 13,
  TCOMP_FLOAT8_E5M2 = 14
} tcomp_dtype;

/* Version 2: on which CPUs threads run, by their speed. Where all are equally fast, it is on all. */
typedef enum {
  TCOMP_CPUS_ALL = 0,  /* wherever the system puts them */
  TCOMP_CPUS_FAST = 1, /* the large cores of a phone: least time */
  TCOMP_CPUS_SLOW = 2  /* its small cores: least energy */
} tcomp_cpus;

/* A model input or output: dense, row-major. `shape` has `rank` entries. */
typedef struct {
  const char *name;
  int32_t dtype; /* tcomp_dtype */
  int32_t rank;
  const int64_t *shape;
  size_t bytes;
} tcomp_tensor;

typedef struct {
  void *data;
  size_t bytes;
} tcomp_buffer;

typedef struct tcomp_context tcomp_context;

/* What tcomp_create may be told; zero or NULL in any field is the default. The struct grows at its end: a
 * library takes those of older headers, and those of newer ones whose fields it does not know are zero. */
typedef struct {
  size_t struct_bytes; /* sizeof(tcomp_options) */
  int32_t threads;     /* number of threads of a run; default: the CPUs that they may use */

  /* Weights of a library that was built with separate weights: a file, which is mapped read-only, or memory
   * that outlives the context and is aligned to 64 bytes. */
  const char *weights_path;
  const void *weights;
  size_t weights_bytes;

  /* The caller's allocator, for the memory that tensors live in; both or neither. */
  void *(*allocate)(void *user, size_t bytes, size_t alignment);
  void (*release)(void *user, void *memory);
  void *allocator_user;

  /* The caller's thread pool: call task(data, i) for every 0 <= i < count, in any order, at once if
   * possible, and return when all are done. `threads` is then how many it runs at once. */
  void (*parallel)(void *user, int32_t count, void (*task)(void *data, int32_t index), void *data);
  void *parallel_user;

  /* Version 2. */

  int32_t cpus;          /* tcomp_cpus: where threads run, the one that calls tcomp_run too while it does */
  int32_t trust_weights; /* 1: do not compare the content of separate weights with the model's hash */
  uint64_t cpu_mask;     /* instead of `cpus`: bit i is CPU i */

  /* Asked between kernels by the thread that runs: nonzero stops the run. */
  int32_t (*cancelled)(void *user);
  void *cancelled_user;

  /* Of a library for several kinds of CPU: the name of the code to run; default: the best for these CPUs. */
  const char *variant;
#if UINTPTR_MAX == UINT32_MAX
  int32_t reserved; /* 0: version 3 ended with bytes that nobody sets */
#endif

  /* Version 4. A context of this library whose weights the new one has too, instead of its own, and on a GPU its
   * code and its device. It may run meanwhile, and be destroyed once tcomp_create has returned: what is shared
   * stays until the last context that has it is destroyed. */
  const tcomp_context *share_with;
} tcomp_options;

/* Facts about the model; valid for as long as the library is loaded. */
int32_t tcomp_abi_version(void);
const char *tcomp_model_name(void);
const char *tcomp_target(void);   /* the targets' names, then their instruction sets: "znver4 x86-64-v4" */
const char *tcomp_features(void); /* CPU features that all variants need: "avx2,fma,..." */
size_t tcomp_arena_bytes(void);   /* memory for tensors in one context */
size_t tcomp_weights_bytes(void);
int32_t tcomp_weights_embedded(void); /* 0: tcomp_create needs weights */
int32_t tcomp_input_count(void);
int32_t tcomp_output_count(void);
const tcomp_tensor *tcomp_input(int32_t index); /* NULL when there is no such input */
const tcomp_tensor *tcomp_output(int32_t index);
int32_t tcomp_step_count(void);
const char *tcomp_step_label(int32_t index); /* NULL when there is no such step */

/* Make a context. On failure *context is NULL and tcomp_error(NULL) says why. */
tcomp_status tcomp_create(const tcomp_options *options, tcomp_context **context);

/* Version 2. The name of the code that the context runs: "cortex-a76". */
const char *tcomp_variant(const tcomp_context *context);

/* Run the model. Buffers are in the order of tcomp_input and tcomp_output, of exactly their sizes, at
 * multiples of their elements' size, and outputs overlap nothing else; else it is TCOMP_ERROR_ARGUMENT. */
tcomp_status tcomp_run(tcomp_context *context, const tcomp_buffer *inputs, int32_t input_count,
                       const tcomp_buffer *outputs, int32_t output_count);

/* Version 3. As tcomp_run for a model on a GPU, in a stream of the caller's (CUstream or cudaStream_t; NULL is
 * the default stream) and without waiting: returns when the run is in the stream. Tensors are in the GPU's
 * memory at multiples of 16 bytes, or in page-locked memory of the CPU. They and the stream must be there until
 * the run has ended, which the caller asks of the stream. Runs of one context come one after the other, in
 * whichever streams. What goes wrong on the GPU meanwhile is told by later calls, of the driver or of this
 * library. A stream that is captured is refused, and so is a library for CPUs. */
tcomp_status tcomp_enqueue(tcomp_context *context, const tcomp_buffer *inputs, int32_t input_count,
                           const tcomp_buffer *outputs, int32_t output_count, void *stream);

/* As tcomp_run; adds the nanoseconds of each step to nanoseconds[0 .. tcomp_step_count() - 1]. */
tcomp_status tcomp_profile(tcomp_context *context, const tcomp_buffer *inputs, int32_t input_count,
                           const tcomp_buffer *outputs, int32_t output_count, uint64_t *nanoseconds,
                           int32_t step_count);

/* Version 2. Stop the run of `context` that is under way, from any thread: it returns TCOMP_CANCELLED soon,
 * and the context can run again. Runs that begin later go on; for a lasting condition use `cancelled`. */
tcomp_status tcomp_cancel(tcomp_context *context);

/* Change the number of threads; 0 is the default. Not with the caller's thread pool. */
tcomp_status tcomp_set_threads(tcomp_context *context, int32_t threads);
int32_t tcomp_threads(const tcomp_context *context); /* of the default number, fewer once the system refused some */

/* The text of the last error of `context`, or, with NULL, of this thread's last call that failed without a
 * context. Empty when there was none. */
const char *tcomp_error(const tcomp_context *context);

void tcomp_destroy(tcomp_context *context); /* NULL is fine */

/* Version 2. All these functions of one library: where a program is linked with several, their names mean the
 * first one's. MODEL.h declares the function that answers the table of its library, tcomp_api_MODEL(). */
typedef struct {
  size_t struct_bytes;
  int32_t (*abi_version)(void);
  const char *(*model_name)(void);
  const char *(*target)(void);
  const char *(*features)(void);
  size_t (*arena_bytes)(void);
  size_t (*weights_bytes)(void);
  int32_t (*weights_embedded)(void);
  int32_t (*input_count)(void);
  int32_t (*output_count)(void);
  const tcomp_tensor *(*input)(int32_t index);
  const tcomp_tensor *(*output)(int32_t index);
  int32_t (*step_count)(void);
  const char *(*step_label)(int32_t index);
  tcomp_status (*create)(const tcomp_options *options, tcomp_context **context);
  tcomp_status (*run)(tcomp_context *context, const tcomp_buffer *inputs, int32_t input_count,
                      const tcomp_buffer *outputs, int32_t output_count);
  tcomp_status (*profile)(tcomp_context *context, const tcomp_buffer *inputs, int32_t input_count,
                          const tcomp_buffer *outputs, int32_t output_count, uint64_t *nanoseconds,
                          int32_t step_count);
  tcomp_status (*cancel)(tcomp_context *context);
  tcomp_status (*set_threads)(tcomp_context *context, int32_t threads);
  int32_t (*threads)(const tcomp_context *context);
  const char *(*error)(const tcomp_context *context);
  void (*destroy)(tcomp_context *context);
  const char *(*variant)(const tcomp_context *context);
  /* Version 3. */
  tcomp_status (*enqueue)(tcomp_context *context, const tcomp_buffer *inputs, int32_t input_count,
                          const tcomp_buffer *outputs, int32_t output_count, void *stream);
} tcomp_api;

#ifdef __cplusplus
}
#endif
#endif
