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
 */
#ifndef TCOMP_H
#define TCOMP_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TCOMP_ABI_VERSION 1

typedef enum {
  TCOMP_OK = 0,
  TCOMP_ERROR_ARGUMENT = 1, /* a NULL pointer, a wrong count or size, an unknown index */
  TCOMP_ERROR_CPU = 2,      /* this CPU lacks an instruction set that the library needs */
  TCOMP_ERROR_MEMORY = 3,   /* out of memory */
  TCOMP_ERROR_WEIGHTS = 4,  /* the weights are missing, unreadable or not those of this model */
  TCOMP_ERROR_RUN = 5       /* a kernel failed: no memory for its workspace, or no threads */
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
  TCOMP_BOOL = 12 /* one byte, 0 or 1 */
} tcomp_dtype;

/* A model input or output: dense, row-major. `shape` has `rank` entries. */
typedef struct {
  const char *name;
  tcomp_dtype dtype;
  int32_t rank;
  const int64_t *shape;
  size_t bytes;
} tcomp_tensor;

typedef struct {
  void *data;
  size_t bytes;
} tcomp_buffer;

/* What tcomp_create may be told; zero or NULL in any field is the default. */
typedef struct {
  size_t struct_bytes; /* sizeof(tcomp_options) */
  int32_t threads;     /* number of threads of a run; default: the CPUs this process may use */

  /* Weights of a library that was built with separate weights: a file, or memory that outlives the
   * context and is aligned to 64 bytes. Memory is taken as it is; a file is checked. */
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
} tcomp_options;

typedef struct tcomp_context tcomp_context;

/* Facts about the model; valid for as long as the library is loaded. */
int32_t tcomp_abi_version(void);
const char *tcomp_model_name(void);
const char *tcomp_target(void);   /* the target's name, then its instruction set: "znver4 x86-64-v4" */
const char *tcomp_features(void); /* CPU features the code needs: "avx2,fma,..." */
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

/* Run the model. Buffers are in the order of tcomp_input and tcomp_output, of exactly their sizes, and
 * outputs overlap nothing else. Any alignment that fits the element type is good. */
tcomp_status tcomp_run(tcomp_context *context, const tcomp_buffer *inputs, int32_t input_count,
                       const tcomp_buffer *outputs, int32_t output_count);

/* As tcomp_run; adds the nanoseconds of each step to nanoseconds[0 .. tcomp_step_count() - 1]. */
tcomp_status tcomp_profile(tcomp_context *context, const tcomp_buffer *inputs, int32_t input_count,
                           const tcomp_buffer *outputs, int32_t output_count, uint64_t *nanoseconds,
                           int32_t step_count);

/* Change the number of threads; 0 is the default. Not with the caller's thread pool. */
tcomp_status tcomp_set_threads(tcomp_context *context, int32_t threads);
int32_t tcomp_threads(const tcomp_context *context);

/* The text of the last error of `context`, or, with NULL, of this thread's last failed tcomp_create.
 * Empty when there was none. */
const char *tcomp_error(const tcomp_context *context);

void tcomp_destroy(tcomp_context *context); /* NULL is fine */

#ifdef __cplusplus
}
#endif
#endif
