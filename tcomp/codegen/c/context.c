/* The public interface: facts about the model, contexts and runs. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "blake2b.h"
#include "cpu.h"
#include "model_info.h"
#include "pool.h"

#define API __attribute__((visibility("default")))
#define ERROR_BYTES 512
#define ALIGNMENT 64
#define HUGE_PAGE ((size_t)2 << 20)

struct tcomp_context {
  tcomp_options options;
  pthread_mutex_t lock; /* held by the one run at a time */
  tcomp_pool *pool;
  char *arena;
  const char *weights;
  void *mapped; /* the file with the weights, or NULL */
  char error[ERROR_BYTES];
};

static _Thread_local char create_error[ERROR_BYTES];

/* Writes the text of an error and returns its status. */
__attribute__((format(printf, 3, 4))) static tcomp_status fail(char *text, tcomp_status status,
                                                               const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, ERROR_BYTES, format, arguments);
  va_end(arguments);
  return status;
}

uint64_t tcomp_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- facts -------------------------------------------------------------------------------------- */

API int32_t tcomp_abi_version(void) { return TCOMP_ABI_VERSION; }
API const char *tcomp_model_name(void) { return tcomp_model.name; }
API const char *tcomp_target(void) { return tcomp_model.target; }
API const char *tcomp_features(void) { return tcomp_model.features; }
API size_t tcomp_arena_bytes(void) { return tcomp_model.arena_bytes; }
API size_t tcomp_weights_bytes(void) { return tcomp_model.weights_bytes; }
API int32_t tcomp_weights_embedded(void) { return tcomp_model.weights != NULL || tcomp_model.weights_bytes == 0; }
API int32_t tcomp_input_count(void) { return tcomp_model.input_count; }
API int32_t tcomp_output_count(void) { return tcomp_model.output_count; }
API int32_t tcomp_step_count(void) { return tcomp_model.step_count; }

API const tcomp_tensor *tcomp_input(int32_t index) {
  return index >= 0 && index < tcomp_model.input_count ? &tcomp_model.inputs[index] : NULL;
}

API const tcomp_tensor *tcomp_output(int32_t index) {
  return index >= 0 && index < tcomp_model.output_count ? &tcomp_model.outputs[index] : NULL;
}

API const char *tcomp_step_label(int32_t index) {
  return index >= 0 && index < tcomp_model.step_count ? tcomp_model.step_labels[index] : NULL;
}

/* ---- weights ------------------------------------------------------------------------------------- */

static tcomp_status map_weights(tcomp_context *context, const char *path) {
  size_t expected = tcomp_model.weights_bytes;
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0)
    return fail(create_error, TCOMP_ERROR_WEIGHTS, "cannot open weights %s: %s", path, strerror(errno));
  struct stat status;
  size_t found = fstat(file, &status) == 0 ? (size_t)status.st_size : 0;
  if (found != expected) {
    close(file);
    return fail(create_error, TCOMP_ERROR_WEIGHTS, "weights %s have %zu bytes; this model's have %zu", path,
                found, expected);
  }
  void *memory = mmap(NULL, expected, PROT_READ, MAP_PRIVATE, file, 0);
  int reason = errno;
  close(file);
  if (memory == MAP_FAILED)
    return fail(create_error, TCOMP_ERROR_WEIGHTS, "cannot map weights %s: %s", path, strerror(reason));
  context->mapped = memory;
  context->weights = memory;
  unsigned char digest[TCOMP_DIGEST_BYTES];
  tcomp_blake2b(memory, expected, digest);
  if (memcmp(digest, tcomp_model.weights_digest, sizeof digest) != 0)
    return fail(create_error, TCOMP_ERROR_WEIGHTS, "weights %s are not those of this model; compile it again",
                path);
  return TCOMP_OK;
}

static tcomp_status find_weights(tcomp_context *context) {
  const tcomp_options *options = &context->options;
  if (tcomp_weights_embedded()) {
    context->weights = tcomp_model.weights;
    return TCOMP_OK;
  }
  if (options->weights != NULL) {
    if (options->weights_bytes != tcomp_model.weights_bytes || (uintptr_t)options->weights % ALIGNMENT != 0)
      return fail(create_error, TCOMP_ERROR_WEIGHTS,
                  "weights in memory have %zu bytes at %p; they must have %zu, at a multiple of %d",
                  options->weights_bytes, options->weights, tcomp_model.weights_bytes, ALIGNMENT);
    context->weights = options->weights;
    return TCOMP_OK;
  }
  if (options->weights_path == NULL)
    return fail(create_error, TCOMP_ERROR_WEIGHTS,
                "this model has separate weights; give weights_path or weights in tcomp_options");
  return map_weights(context, options->weights_path);
}

/* ---- contexts -------------------------------------------------------------------------------------- */

static char *allocate_arena(const tcomp_options *options) {
  size_t bytes = tcomp_model.arena_bytes > 0 ? tcomp_model.arena_bytes : ALIGNMENT;
  if (options->allocate != NULL) return options->allocate(options->allocator_user, bytes, ALIGNMENT);
  /* Activations walk through megabytes: with pages of 4 KiB a part of the time goes to translating addresses. */
  int is_large = bytes >= HUGE_PAGE;
  if (is_large) bytes = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  void *memory = NULL;
  if (posix_memalign(&memory, is_large ? HUGE_PAGE : ALIGNMENT, bytes) != 0) return NULL;
#ifdef MADV_HUGEPAGE
  if (is_large) madvise(memory, bytes, MADV_HUGEPAGE); /* advice: a system may have no such pages */
#endif
  return memory;
}

static tcomp_status check_options(const tcomp_options *options) {
  if (options->struct_bytes != sizeof *options)
    return fail(create_error, TCOMP_ERROR_ARGUMENT,
                "tcomp_options.struct_bytes is %zu; it must be %zu: set it to sizeof(tcomp_options), with the "
                "header of ABI version %d",
                options->struct_bytes, sizeof *options, TCOMP_ABI_VERSION);
  if ((options->allocate == NULL) != (options->release == NULL))
    return fail(create_error, TCOMP_ERROR_ARGUMENT, "tcomp_options has only one of allocate and release");
  if (options->threads < 0)
    return fail(create_error, TCOMP_ERROR_ARGUMENT, "tcomp_options.threads is %d; it must not be negative",
                options->threads);
  return TCOMP_OK;
}

static tcomp_status fill_context(tcomp_context *context) {
  char missing[32];
  if (tcomp_cpu_lacks(tcomp_model.features, missing, sizeof missing))
    return fail(create_error, TCOMP_ERROR_CPU, "this CPU has no %s, which the library is compiled for (%s)",
                missing, tcomp_model.target);
  tcomp_status status = find_weights(context);
  if (status != TCOMP_OK) return status;
  context->arena = allocate_arena(&context->options);
  context->pool = tcomp_pool_create(&context->options);
  if (context->arena == NULL || context->pool == NULL)
    return fail(create_error, TCOMP_ERROR_MEMORY, "out of memory: the model needs %zu bytes for tensors",
                tcomp_model.arena_bytes);
  return TCOMP_OK;
}

API tcomp_status tcomp_create(const tcomp_options *options, tcomp_context **result) {
  static const tcomp_options DEFAULTS = {.struct_bytes = sizeof DEFAULTS};
  create_error[0] = '\0';
  if (result == NULL) return fail(create_error, TCOMP_ERROR_ARGUMENT, "tcomp_create: context is NULL");
  *result = NULL;
  if (options == NULL) options = &DEFAULTS;
  tcomp_status status = check_options(options);
  if (status != TCOMP_OK) return status;
  tcomp_context *context = calloc(1, sizeof *context);
  if (context == NULL) return fail(create_error, TCOMP_ERROR_MEMORY, "out of memory");
  context->options = *options;
  pthread_mutex_init(&context->lock, NULL);
  status = fill_context(context);
  if (status != TCOMP_OK) {
    tcomp_destroy(context);
    return status;
  }
  *result = context;
  return TCOMP_OK;
}

API void tcomp_destroy(tcomp_context *context) {
  if (context == NULL) return;
  if (context->pool != NULL) tcomp_pool_destroy(context->pool);
  if (context->arena != NULL) {
    if (context->options.release != NULL)
      context->options.release(context->options.allocator_user, context->arena);
    else
      free(context->arena);
  }
  if (context->mapped != NULL) munmap(context->mapped, tcomp_model.weights_bytes);
  pthread_mutex_destroy(&context->lock);
  free(context);
}

API const char *tcomp_error(const tcomp_context *context) {
  return context == NULL ? create_error : context->error;
}

API tcomp_status tcomp_set_threads(tcomp_context *context, int32_t threads) {
  if (context == NULL) return TCOMP_ERROR_ARGUMENT;
  pthread_mutex_lock(&context->lock);
  tcomp_status status = TCOMP_OK;
  if (threads < 0)
    status = fail(context->error, TCOMP_ERROR_ARGUMENT, "threads is %d; it must not be negative", threads);
  else if (context->options.parallel != NULL)
    status = fail(context->error, TCOMP_ERROR_ARGUMENT, "the context uses the caller's thread pool");
  else
    tcomp_pool_set_threads(context->pool, threads);
  pthread_mutex_unlock(&context->lock);
  return status;
}

API int32_t tcomp_threads(const tcomp_context *context) {
  return context == NULL ? 0 : tcomp_pool_threads(context->pool);
}

/* ---- runs ------------------------------------------------------------------------------------------- */

/* Checks `buffers` against `tensors` and takes out their pointers. */
static tcomp_status take_pointers(tcomp_context *context, const char *kind, const tcomp_tensor *tensors,
                                  int32_t expected, const tcomp_buffer *buffers, int32_t count,
                                  void **pointers) {
  if (count != expected)
    return fail(context->error, TCOMP_ERROR_ARGUMENT, "%d %ss given; the model has %d", count, kind, expected);
  if (count > 0 && buffers == NULL)
    return fail(context->error, TCOMP_ERROR_ARGUMENT, "the array of %ss is NULL", kind);
  for (int32_t i = 0; i < count; i++) {
    if (buffers[i].bytes != tensors[i].bytes)
      return fail(context->error, TCOMP_ERROR_ARGUMENT, "%s %d (%s) has %zu bytes; it must have %zu", kind, i,
                  tensors[i].name, buffers[i].bytes, tensors[i].bytes);
    if (buffers[i].data == NULL && tensors[i].bytes > 0)
      return fail(context->error, TCOMP_ERROR_ARGUMENT, "%s %d (%s) is NULL", kind, i, tensors[i].name);
    pointers[i] = buffers[i].data;
  }
  return TCOMP_OK;
}

static tcomp_status run_locked(tcomp_context *context, const tcomp_buffer *inputs, int32_t input_count,
                               const tcomp_buffer *outputs, int32_t output_count, uint64_t *nanoseconds) {
  void *input_pointers[tcomp_model.input_count + 1], *output_pointers[tcomp_model.output_count + 1];
  tcomp_status status = take_pointers(context, "input", tcomp_model.inputs, tcomp_model.input_count, inputs,
                                      input_count, input_pointers);
  if (status != TCOMP_OK) return status;
  status = take_pointers(context, "output", tcomp_model.outputs, tcomp_model.output_count, outputs,
                         output_count, output_pointers);
  if (status != TCOMP_OK) return status;
  tcomp_frame frame = {context->arena, context->weights, input_pointers, output_pointers, nanoseconds};
  tcomp_pool *before = tcomp_pool_enter(context->pool);
  int32_t failed = tcomp_model.run(&frame);
  tcomp_pool_leave(context->pool, before);
  if (failed >= 0)
    return fail(context->error, TCOMP_ERROR_RUN, "step %d (%s) failed: no memory for its workspace", failed,
                tcomp_model.step_labels[failed]);
  return TCOMP_OK;
}

API tcomp_status tcomp_run(tcomp_context *context, const tcomp_buffer *inputs, int32_t input_count,
                           const tcomp_buffer *outputs, int32_t output_count) {
  if (context == NULL) return TCOMP_ERROR_ARGUMENT;
  pthread_mutex_lock(&context->lock);
  tcomp_status status = run_locked(context, inputs, input_count, outputs, output_count, NULL);
  pthread_mutex_unlock(&context->lock);
  return status;
}

API tcomp_status tcomp_profile(tcomp_context *context, const tcomp_buffer *inputs, int32_t input_count,
                               const tcomp_buffer *outputs, int32_t output_count, uint64_t *nanoseconds,
                               int32_t step_count) {
  if (context == NULL) return TCOMP_ERROR_ARGUMENT;
  pthread_mutex_lock(&context->lock);
  tcomp_status status;
  if (nanoseconds == NULL || step_count != tcomp_model.step_count)
    status = fail(context->error, TCOMP_ERROR_ARGUMENT, "nanoseconds must have %d entries", tcomp_model.step_count);
  else
    status = run_locked(context, inputs, input_count, outputs, output_count, nanoseconds);
  pthread_mutex_unlock(&context->lock);
  return status;
}
