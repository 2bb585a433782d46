/* Models on NVIDIA's GPUs: contexts, and the steps of their runs.
 *
 * A context has its own streams, arena, and buffers for inputs and outputs that the caller has in the CPU's
 * memory; those in the device's memory are used where they are.
 *
 * Source: CUDA Driver API reference.
 */
#include "cuda_device.h"

#include <stdlib.h>
#include <string.h>

#define NO_TIMING 2 /* CU_EVENT_DISABLE_TIMING */

tcomp_status tcomp_cuda_refused(char *text, const char *what, int code) {
  tcomp_status status = code == TCOMP_CUDA_OUT_OF_MEMORY ? TCOMP_ERROR_MEMORY : TCOMP_ERROR_RUN;
  if (status == TCOMP_ERROR_MEMORY)
    return tcomp_fail(text, status,
                      "GPU: %s: %s (CUDA error %d); the model takes %zu bytes for weights and %zu for tensors: end "
                      "what else takes the GPU's memory, or compile for a smaller batch",
                      what, tcomp_cuda_words(code), code, (size_t)tcomp_model.weights_bytes,
                      (size_t)tcomp_model.arena_bytes);
  return tcomp_fail(text, status, "GPU: %s: %s (CUDA error %d)", what, tcomp_cuda_words(code), code);
}

/* ---- creation --------------------------------------------------------------------------------------- */

int tcomp_cuda_is_wanted(const tcomp_options *options, const tcomp_variant_info *variant) {
  return options->variant == NULL || strcmp(options->variant, variant->name) == 0;
}

/* What is placed serves a device and a variant, which another context may have chosen. */
static tcomp_status check_choices(const tcomp_placed *placed, const tcomp_options *options, char *text) {
  int number;
  if (tcomp_cuda_current_device(&number) && number != placed->number)
    return tcomp_fail(text, TCOMP_ERROR_ARGUMENT,
                      "tcomp_options.share_with has its weights on device %d, and the current CUDA context is of "
                      "device %d; make device %d current, or create the context without share_with",
                      placed->number, number, placed->number);
  if (!tcomp_cuda_is_wanted(options, placed->variant))
    return tcomp_fail(text, TCOMP_ERROR_ARGUMENT,
                      "tcomp_options.variant is %s, and share_with has code and weights of %s; leave out one of them",
                      options->variant, placed->variant->name);
  return TCOMP_OK;
}

static tcomp_status create_streams(tcomp_device *device, char *text) {
  size_t streams = (size_t)tcomp_cuda_stream_count, steps = (size_t)tcomp_model.step_count;
  device->streams = calloc(streams, sizeof *device->streams);
  device->step_events = calloc(steps + 1, sizeof *device->step_events);
  if (device->streams == NULL || device->step_events == NULL)
    return tcomp_fail(text, TCOMP_ERROR_MEMORY, "out of memory");
  for (size_t i = 0; i < streams; i++)
    TRY("a stream", tcomp_cuda.stream_create(&device->streams[i], TCOMP_CUDA_NON_BLOCKING));
  for (size_t i = 0; i < steps; i++)
    if (tcomp_cuda_steps[i].is_awaited)
      TRY("an event", tcomp_cuda.event_create(&device->step_events[i], NO_TIMING));
  TRY("an event", tcomp_cuda.event_create(&device->order, NO_TIMING));
  TRY("an event", tcomp_cuda.event_create(&device->done, NO_TIMING));
  TRY("an event", tcomp_cuda.event_create(&device->begin, 0));
  TRY("an event", tcomp_cuda.event_create(&device->end, 0));
  return TCOMP_OK;
}

static tcomp_status fill_device(tcomp_device *device, char *text) {
  size_t tensors = (size_t)(tcomp_model.input_count + tcomp_model.output_count);
  device->staged = calloc(tensors + 1, sizeof *device->staged);
  device->locked = calloc(tensors + 1, sizeof *device->locked);
  int has_room = device->staged != NULL && device->locked != NULL;
  for (int32_t i = 0; i < TCOMP_CUDA_RECORDINGS; i++) {
    void **pointers = device->recordings[i].pointers = calloc(tensors + 1, sizeof *pointers);
    has_room = has_room && pointers != NULL;
  }
  if (!has_room) return tcomp_fail(text, TCOMP_ERROR_MEMORY, "out of memory");
  tcomp_status status = create_streams(device, text);
  if (status != TCOMP_OK) return status;
  if (tcomp_model.arena_bytes > 0)
    TRY("memory for tensors", tcomp_cuda.allocate(&device->arena, tcomp_model.arena_bytes));
  return TCOMP_OK;
}

static void release_events_and_streams(tcomp_device *device) {
  handle events[] = {device->order, device->done, device->begin, device->end};
  for (size_t i = 0; i < sizeof events / sizeof *events; i++)
    if (events[i] != NULL) tcomp_cuda.event_destroy(events[i]);
  for (int32_t i = 0; device->step_events != NULL && i < tcomp_model.step_count; i++)
    if (device->step_events[i] != NULL) tcomp_cuda.event_destroy(device->step_events[i]);
  for (int32_t i = 0; device->streams != NULL && i < tcomp_cuda_stream_count; i++)
    if (device->streams[i] != NULL) tcomp_cuda.stream_destroy(device->streams[i]);
}

static void destroy(tcomp_device *device) {
  handle ignored;
  int32_t tensors = tcomp_model.input_count + tcomp_model.output_count;
  if (tcomp_cuda.push(device->placed->context) == 0) {
    if (device->is_under_way) tcomp_cuda.event_synchronize(device->done);
    for (int32_t i = 0; i < TCOMP_CUDA_RECORDINGS; i++)
      if (device->recordings[i].graph != NULL) tcomp_cuda.graph_release(device->recordings[i].graph);
    for (int32_t i = 0; device->staged != NULL && i < tensors; i++)
      if (device->staged[i] != 0) tcomp_cuda.release_memory(device->staged[i]);
    for (int32_t i = 0; device->locked != NULL && i < tensors; i++)
      if (device->locked[i] != NULL) tcomp_cuda.release_locked(device->locked[i]);
    if (device->arena != 0) tcomp_cuda.release_memory(device->arena);
    release_events_and_streams(device);
    tcomp_cuda.pop(&ignored);
  }
  for (int32_t i = 0; i < TCOMP_CUDA_RECORDINGS; i++) free(device->recordings[i].pointers);
  free(device->staged);
  free(device->locked);
  free(device->streams);
  free(device->step_events);
  free(device);
}

static tcomp_status create(const tcomp_options *options, const tcomp_placed *placed, tcomp_device **result,
                           const tcomp_variant_info **variant, char *text) {
  handle ignored;
  tcomp_status status = check_choices(placed, options, text);
  if (status != TCOMP_OK) return status;
  tcomp_device *device = calloc(1, sizeof *device);
  if (device == NULL) return tcomp_fail(text, TCOMP_ERROR_MEMORY, "out of memory");
  device->placed = placed;
  int code = tcomp_cuda.push(placed->context);
  status = code == 0 ? fill_device(device, text) : tcomp_cuda_refused(text, "a context", code);
  if (code == 0) tcomp_cuda.pop(&ignored);
  if (status != TCOMP_OK) {
    destroy(device);
    return status;
  }
  *result = device;
  *variant = placed->variant;
  return TCOMP_OK;
}

/* ---- steps --------------------------------------------------------------------------------------------- */

static int32_t note(const tcomp_frame *frame, const char *what, int code) {
  if (code != 0) {
    frame->device->problem = what;
    frame->device->code = code;
  }
  return code;
}

int32_t tcomp_cuda_launch(const tcomp_frame *frame, int32_t first, int32_t count, const void *const *arguments,
                          int32_t argument_count) {
  tcomp_device *device = frame->device;
  for (int32_t i = first; i < first + count; i++) {
    const tcomp_cuda_launch_info *launch = &tcomp_cuda_launches[i];
    int code = tcomp_cuda_start(launch, device->placed->functions[i], device->current, arguments, argument_count);
    if (code != 0) return note(frame, launch->symbol, code);
  }
  return 0;
}

int32_t tcomp_cuda_copy(const tcomp_frame *frame, void *to, const void *from, size_t bytes) {
  return note(frame, "a copy",
              tcomp_cuda.move((address)(uintptr_t)to, (address)(uintptr_t)from, bytes, frame->device->current));
}

/* A run that is profiled has all steps in one stream, one after the other. */
int32_t tcomp_cuda_begin(const tcomp_frame *frame, int32_t step) {
  tcomp_device *device = frame->device;
  const tcomp_cuda_step_info *info = &tcomp_cuda_steps[step];
  device->current = device->streams[frame->nanoseconds == NULL ? info->stream : 0];
  if (frame->nanoseconds != NULL)
    return note(frame, "an event", tcomp_cuda.event_record(device->begin, device->current));
  for (int32_t i = 0; i < info->wait_count; i++) {
    handle event = device->step_events[tcomp_cuda_waits[info->first_wait + i]];
    int code = tcomp_cuda.wait_event(device->current, event, 0);
    if (code != 0) return note(frame, "an event", code);
  }
  return 0;
}

int32_t tcomp_cuda_end(const tcomp_frame *frame, int32_t step) {
  tcomp_device *device = frame->device;
  float milliseconds = 0;
  if (frame->nanoseconds == NULL) {
    if (!tcomp_cuda_steps[step].is_awaited) return 0;
    return note(frame, "an event", tcomp_cuda.event_record(device->step_events[step], device->current));
  }
  int code = tcomp_cuda.event_record(device->end, device->current);
  if (code == 0) code = tcomp_cuda.event_synchronize(device->end);
  if (code == 0) code = tcomp_cuda.event_elapsed(&milliseconds, device->begin, device->end);
  frame->nanoseconds[step] += (uint64_t)(milliseconds * 1e6f);
  return note(frame, tcomp_model.step_labels[step], code);
}

const tcomp_backend tcomp_cuda_backend = {tcomp_cuda_place, tcomp_cuda_remove, create, destroy, tcomp_cuda_run,
                                          tcomp_cuda_enqueue};
