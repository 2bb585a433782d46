/* The public interface: facts about the model, contexts and runs. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "affinity.h"
#include "shared.h"
#include "variant.h"
#include "workspace.h"

#define API TCOMP_PUBLIC
#define OPTIONS_BYTES_OF_VERSION_1 offsetof(tcomp_options, cpus)
#define OPTIONS_BYTES_AT_MOST 4096 /* what is larger is no tcomp_options */
#define HUGE_PAGE ((size_t)2 << 20)

struct tcomp_context {
  const tcomp_model_info *model; /* of which library it is */
  tcomp_options options;
  pthread_mutex_t lock; /* held by the one run at a time */
  tcomp_pool *pool;
  const tcomp_variant_info *variant;
  tcomp_device *device; /* NULL: the CPU */
  char *arena;
  tcomp_shared *shared; /* with other contexts */
  char error[TCOMP_ERROR_BYTES];
};

static _Thread_local char loose_error[TCOMP_ERROR_BYTES]; /* of calls without a context */

tcomp_status tcomp_fail(char *text, tcomp_status status, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, TCOMP_ERROR_BYTES, format, arguments);
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
API int32_t tcomp_weights_embedded(void) {
  return tcomp_model.weights != NULL || tcomp_model.weights_bytes == 0;
}
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

/* ---- contexts -------------------------------------------------------------------------------------- */

static char *allocate_arena(const tcomp_options *options) {
  size_t bytes = tcomp_model.arena_bytes > 0 ? tcomp_model.arena_bytes : TCOMP_ALIGNMENT;
  if (options->allocate != NULL) return options->allocate(options->allocator_user, bytes, TCOMP_ALIGNMENT);
  /* Activations walk through megabytes: with pages of 4 KiB a part of the time goes to translating addresses. */
  int is_large = bytes >= HUGE_PAGE;
  if (is_large) bytes = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  void *memory = NULL;
  if (posix_memalign(&memory, is_large ? HUGE_PAGE : TCOMP_ALIGNMENT, bytes) != 0) return NULL;
#ifdef MADV_HUGEPAGE
  if (is_large) madvise(memory, bytes, MADV_HUGEPAGE); /* advice: a system may have no such pages */
#endif
  return memory;
}

_Static_assert(offsetof(tcomp_options, share_with) % _Alignof(tcomp_options) == 0,
               "a field of a new version lies behind all bytes of the version before");

/* Copies the caller's options, which an older or a newer header made smaller or larger. */
static tcomp_status take_options(const tcomp_options *given, tcomp_options *options) {
  size_t bytes = given->struct_bytes, known = bytes < sizeof *options ? bytes : sizeof *options;
  if (bytes < OPTIONS_BYTES_OF_VERSION_1 || bytes > OPTIONS_BYTES_AT_MOST)
    return tcomp_fail(loose_error, TCOMP_ERROR_ARGUMENT,
                "tcomp_options.struct_bytes is %zu; set it to sizeof(tcomp_options), which is %zu in ABI "
                "version %d",
                bytes, sizeof *options, TCOMP_ABI_VERSION);
  for (size_t i = known; i < bytes; i++)
    if (((const char *)given)[i] != 0)
      return tcomp_fail(loose_error, TCOMP_ERROR_ARGUMENT,
                  "tcomp_options sets a field after byte %zu, which the library does not know: it has ABI "
                  "version %d; compile it again",
                  known, TCOMP_ABI_VERSION);
  memset(options, 0, sizeof *options);
  memcpy(options, given, known);
  options->struct_bytes = sizeof *options;
  return TCOMP_OK;
}

static tcomp_status check_options(const tcomp_options *options) {
  cpu_set_t set;
  if ((options->allocate == NULL) != (options->release == NULL))
    return tcomp_fail(loose_error, TCOMP_ERROR_ARGUMENT, "tcomp_options has only one of allocate and release");
  if (options->threads < 0)
    return tcomp_fail(loose_error, TCOMP_ERROR_ARGUMENT, "tcomp_options.threads is %d; it must not be negative",
                options->threads);
  if (options->cpus < TCOMP_CPUS_ALL || options->cpus > TCOMP_CPUS_SLOW)
    return tcomp_fail(loose_error, TCOMP_ERROR_ARGUMENT, "tcomp_options.cpus is %d; it must be one of tcomp_cpus",
                options->cpus);
  if (tcomp_choose_cpus(options, &set) == 0)
    return tcomp_fail(loose_error, TCOMP_ERROR_ARGUMENT,
                "tcomp_options.cpu_mask is 0x%llx, and this thread may use none of these CPUs",
                (unsigned long long)options->cpu_mask);
  return TCOMP_OK;
}

/* The weights of the context that is named for it, else the context's own. */
static tcomp_status find_shared(tcomp_context *context) {
  const tcomp_options *options = &context->options;
  const tcomp_context *other = options->share_with;
  if (other == NULL) return tcomp_shared_create(options, &context->shared, loose_error);
  if (other->model != &tcomp_model)
    return tcomp_fail(loose_error, TCOMP_ERROR_ARGUMENT,
                      "tcomp_options.share_with is no context of this library (%s), which alone has its weights",
                      tcomp_model.name);
  if (options->weights != NULL || options->weights_path != NULL)
    return tcomp_fail(loose_error, TCOMP_ERROR_ARGUMENT,
                      "tcomp_options has share_with, whose weights the context gets, and others; leave one out");
  context->shared = tcomp_shared_take(other->shared);
  return TCOMP_OK;
}

static tcomp_status fill_context(tcomp_context *context) {
  const tcomp_backend *backend = tcomp_model.backend;
  tcomp_status status = TCOMP_OK;
  if (backend == NULL)
    status = tcomp_choose_variant(&context->options, &context->variant, loose_error, sizeof loose_error);
  if (status == TCOMP_OK) status = find_shared(context);
  if (status == TCOMP_OK && backend != NULL)
    status = backend->create(&context->options, tcomp_shared_placed(context->shared), &context->device,
                             &context->variant, loose_error);
  if (status != TCOMP_OK) return status;
  if (backend == NULL) context->arena = allocate_arena(&context->options);
  context->pool = tcomp_pool_create(&context->options);
  if ((context->arena == NULL && backend == NULL) || context->pool == NULL)
    return tcomp_fail(loose_error, TCOMP_ERROR_MEMORY, "out of memory: the model needs %zu bytes for tensors",
                      tcomp_model.arena_bytes);
  return TCOMP_OK;
}

API tcomp_status tcomp_create(const tcomp_options *given, tcomp_context **result) {
  static const tcomp_options DEFAULTS = {.struct_bytes = sizeof DEFAULTS};
  tcomp_options options;
  loose_error[0] = '\0';
  if (result == NULL) return tcomp_fail(loose_error, TCOMP_ERROR_ARGUMENT, "tcomp_create: context is NULL");
  *result = NULL;
  tcomp_status status = take_options(given == NULL ? &DEFAULTS : given, &options);
  if (status == TCOMP_OK) status = check_options(&options);
  if (status != TCOMP_OK) return status;
  tcomp_context *context = calloc(1, sizeof *context);
  if (context == NULL) return tcomp_fail(loose_error, TCOMP_ERROR_MEMORY, "out of memory");
  context->model = &tcomp_model;
  context->options = options;
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
  if (context->device != NULL) tcomp_model.backend->destroy(context->device);
  if (context->pool != NULL) tcomp_pool_destroy(context->pool);
  if (context->arena != NULL) {
    if (context->options.release != NULL)
      context->options.release(context->options.allocator_user, context->arena);
    else
      free(context->arena);
  }
  if (context->shared != NULL) tcomp_shared_release(context->shared);
  pthread_mutex_destroy(&context->lock);
  free(context);
}

API const char *tcomp_error(const tcomp_context *context) {
  return context == NULL ? loose_error : context->error;
}

static tcomp_status no_context(const char *function) {
  return tcomp_fail(loose_error, TCOMP_ERROR_ARGUMENT, "%s: context is NULL", function);
}

API tcomp_status tcomp_cancel(tcomp_context *context) {
  if (context == NULL) return no_context("tcomp_cancel");
  tcomp_pool_cancel(context->pool);
  return TCOMP_OK;
}

API tcomp_status tcomp_set_threads(tcomp_context *context, int32_t threads) {
  if (context == NULL) return no_context("tcomp_set_threads");
  pthread_mutex_lock(&context->lock);
  tcomp_status status = TCOMP_OK;
  if (threads < 0)
    status = tcomp_fail(context->error, TCOMP_ERROR_ARGUMENT, "threads is %d; it must not be negative", threads);
  else if (context->options.parallel != NULL)
    status = tcomp_fail(context->error, TCOMP_ERROR_ARGUMENT, "the context uses the caller's thread pool");
  else
    tcomp_pool_set_threads(context->pool, threads);
  pthread_mutex_unlock(&context->lock);
  return status;
}

API const char *tcomp_variant(const tcomp_context *context) {
  return context == NULL ? NULL : context->variant->name;
}

API int32_t tcomp_threads(const tcomp_context *context) {
  return context == NULL ? 0 : tcomp_pool_threads(context->pool);
}

/* ---- runs ------------------------------------------------------------------------------------------- */

static size_t element_bytes(int32_t dtype) {
  static const unsigned char BYTES[] = {2, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 1, 1, 1};
  return BYTES[dtype];
}

/* Checks `buffers` against `tensors` and takes out their pointers. */
static tcomp_status take_pointers(tcomp_context *context, const char *kind, const tcomp_tensor *tensors,
                                  int32_t expected, const tcomp_buffer *buffers, int32_t count,
                                  void **pointers) {
  if (count != expected)
    return tcomp_fail(context->error, TCOMP_ERROR_ARGUMENT, "%d %ss given; the model has %d", count, kind, expected);
  if (count > 0 && buffers == NULL)
    return tcomp_fail(context->error, TCOMP_ERROR_ARGUMENT, "the array of %ss is NULL", kind);
  for (int32_t i = 0; i < count; i++) {
    if (buffers[i].bytes != tensors[i].bytes)
      return tcomp_fail(context->error, TCOMP_ERROR_ARGUMENT, "%s %d (%s) has %zu bytes; it must have %zu", kind, i,
                  tensors[i].name, buffers[i].bytes, tensors[i].bytes);
    if (buffers[i].data == NULL && tensors[i].bytes > 0)
      return tcomp_fail(context->error, TCOMP_ERROR_ARGUMENT, "%s %d (%s) is NULL", kind, i, tensors[i].name);
    if ((uintptr_t)buffers[i].data % element_bytes(tensors[i].dtype) != 0)
      return tcomp_fail(context->error, TCOMP_ERROR_ARGUMENT, "%s %d (%s) is at %p; it must be at a multiple of %zu",
                  kind, i, tensors[i].name, buffers[i].data, element_bytes(tensors[i].dtype));
    pointers[i] = buffers[i].data;
  }
  return TCOMP_OK;
}

static int overlap(const tcomp_buffer *a, const tcomp_buffer *b) {
  uintptr_t start = (uintptr_t)a->data, other = (uintptr_t)b->data;
  return a->bytes > 0 && b->bytes > 0 && start < other + b->bytes && other < start + a->bytes;
}

static tcomp_status check_overlaps(tcomp_context *context, const tcomp_buffer *inputs,
                                   const tcomp_buffer *outputs) {
  for (int32_t i = 0; i < tcomp_model.output_count; i++) {
    const char *name = tcomp_model.outputs[i].name;
    for (int32_t k = 0; k < tcomp_model.input_count; k++)
      if (overlap(&outputs[i], &inputs[k]))
        return tcomp_fail(context->error, TCOMP_ERROR_ARGUMENT, "output %d (%s) overlaps input %d (%s)", i, name, k,
                    tcomp_model.inputs[k].name);
    for (int32_t k = 0; k < i; k++)
      if (overlap(&outputs[i], &outputs[k]))
        return tcomp_fail(context->error, TCOMP_ERROR_ARGUMENT, "output %d (%s) overlaps output %d (%s)", i, name,
                    k, tcomp_model.outputs[k].name);
  }
  return TCOMP_OK;
}

/* `stream` is NULL, or where a handle of the device's stream is that the run goes to. */
static tcomp_status run_locked(tcomp_context *context, const tcomp_buffer *inputs, int32_t input_count,
                               const tcomp_buffer *outputs, int32_t output_count, uint64_t *nanoseconds,
                               void *const *stream) {
  void *input_pointers[tcomp_model.input_count + 1], *output_pointers[tcomp_model.output_count + 1];
  tcomp_status status = take_pointers(context, "input", tcomp_model.inputs, tcomp_model.input_count, inputs,
                                      input_count, input_pointers);
  if (status != TCOMP_OK) return status;
  status = take_pointers(context, "output", tcomp_model.outputs, tcomp_model.output_count, outputs,
                         output_count, output_pointers);
  if (status == TCOMP_OK) status = check_overlaps(context, inputs, outputs);
  if (status != TCOMP_OK) return status;
  tcomp_frame frame = {context->arena, tcomp_shared_weights(context->shared), input_pointers, output_pointers,
                       nanoseconds,    context->pool,    context->device};
  tcomp_pool *before = tcomp_pool_enter(context->pool);
  int32_t failed = -1;
  if (stream != NULL)
    status = tcomp_model.backend->enqueue(context->device, context->variant, &frame, *stream, &failed,
                                          context->error);
  else if (context->device != NULL)
    status = tcomp_model.backend->run(context->device, context->variant, &frame, &failed, context->error);
  else
    failed = context->variant->run(&frame);
  int was_cancelled = failed >= 0 && tcomp_pool_is_cancelled(context->pool);
  tcomp_pool_leave(context->pool, before);
  if (was_cancelled)
    return tcomp_fail(context->error, TCOMP_CANCELLED, "the run was cancelled at step %d (%s)", failed,
                tcomp_model.step_labels[failed]);
  if (status != TCOMP_OK) return status;
  if (failed < 0) return TCOMP_OK;
  const char *label = tcomp_model.step_labels[failed];
  int32_t started, refusal = tcomp_pool_refusal(context->pool, &started);
  if (refusal != 0)
    return tcomp_fail(context->error, TCOMP_ERROR_RUN,
                "step %d (%s) failed: the system gives %d of %d threads: %s; tcomp_set_threads(context, 0) "
                "takes as many as it gives",
                failed, label, started, tcomp_pool_threads(context->pool), strerror(refusal));
  return tcomp_fail(context->error, TCOMP_ERROR_RUN, "step %d (%s) failed: no memory for its workspace", failed,
              label);
}

API tcomp_status tcomp_run(tcomp_context *context, const tcomp_buffer *inputs, int32_t input_count,
                           const tcomp_buffer *outputs, int32_t output_count) {
  if (context == NULL) return no_context("tcomp_run");
  pthread_mutex_lock(&context->lock);
  tcomp_status status = run_locked(context, inputs, input_count, outputs, output_count, NULL, NULL);
  pthread_mutex_unlock(&context->lock);
  return status;
}

API tcomp_status tcomp_profile(tcomp_context *context, const tcomp_buffer *inputs, int32_t input_count,
                               const tcomp_buffer *outputs, int32_t output_count, uint64_t *nanoseconds,
                               int32_t step_count) {
  if (context == NULL) return no_context("tcomp_profile");
  pthread_mutex_lock(&context->lock);
  tcomp_status status;
  if (nanoseconds == NULL || step_count != tcomp_model.step_count)
    status = tcomp_fail(context->error, TCOMP_ERROR_ARGUMENT, "nanoseconds must have %d entries",
                  tcomp_model.step_count);
  else
    status = run_locked(context, inputs, input_count, outputs, output_count, nanoseconds, NULL);
  pthread_mutex_unlock(&context->lock);
  return status;
}

API tcomp_status tcomp_enqueue(tcomp_context *context, const tcomp_buffer *inputs, int32_t input_count,
                               const tcomp_buffer *outputs, int32_t output_count, void *stream) {
  if (context == NULL) return no_context("tcomp_enqueue");
  pthread_mutex_lock(&context->lock);
  tcomp_status status;
  if (context->device == NULL)
    status = tcomp_fail(context->error, TCOMP_ERROR_ARGUMENT,
                  "the library runs on the CPU, which has no streams; call tcomp_run");
  else
    status = run_locked(context, inputs, input_count, outputs, output_count, NULL, &stream);
  pthread_mutex_unlock(&context->lock);
  return status;
}

/* ---- all of it ---------------------------------------------------------------------------------------- */

const tcomp_api tcomp_functions = {
    sizeof tcomp_functions,
    tcomp_abi_version,
    tcomp_model_name,
    tcomp_target,
    tcomp_features,
    tcomp_arena_bytes,
    tcomp_weights_bytes,
    tcomp_weights_embedded,
    tcomp_input_count,
    tcomp_output_count,
    tcomp_input,
    tcomp_output,
    tcomp_step_count,
    tcomp_step_label,
    tcomp_create,
    tcomp_run,
    tcomp_profile,
    tcomp_cancel,
    tcomp_set_threads,
    tcomp_threads,
    tcomp_error,
    tcomp_destroy,
    tcomp_variant,
    tcomp_enqueue,
};
