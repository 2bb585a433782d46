/* Runs on NVIDIA's GPUs: tensors to and fro, and the steps as a CUDA graph.
 *
 * A graph holds the pointers that it was recorded with. So it is recorded again for other tensors in the
 * device's memory; of those in the CPU's, it knows the copies on the device alone.
 */
#include "cuda_device.h"

#include <stdlib.h>
#include <string.h>

#define POINTER_TYPE 2  /* CU_POINTER_ATTRIBUTE_MEMORY_TYPE */
#define LOCKED_MEMORY 1 /* CU_MEMORYTYPE_HOST */
#define DEVICE_MEMORY 2 /* CU_MEMORYTYPE_DEVICE */
#define RELAXED 2       /* CU_STREAM_CAPTURE_MODE_RELAXED */
#define ALIGNMENT 16    /* of the widest load of a kernel, and of a tensor that tiles are copied of */
#define PIECE ((size_t)1 << 20) /* bytes that are on their way while the CPU copies the next */

/* Where the caller has a tensor. */
typedef enum { ON_DEVICE, LOCKED, PAGEABLE } place;

typedef struct {
  place *places;   /* of each input, then each output */
  void **given;    /* by the caller, in the same order */
  void **pointers; /* on the device */
  handle stream;   /* in which the run begins and ends */
} tensors_of_run;

static const tcomp_tensor *tensor_of(int32_t number) {
  int32_t inputs = tcomp_model.input_count;
  return number < inputs ? &tcomp_model.inputs[number] : &tcomp_model.outputs[number - inputs];
}

static place place_of(const void *pointer) {
  unsigned type = 0;
  if (tcomp_cuda.pointer_attribute(&type, POINTER_TYPE, (address)(uintptr_t)pointer) != 0) return PAGEABLE;
  return type == DEVICE_MEMORY ? ON_DEVICE : type == LOCKED_MEMORY ? LOCKED : PAGEABLE;
}

/* Finds a tensor on the device: at the caller's pointer, or in a buffer of the context. */
static tcomp_status find(tcomp_device *device, tensors_of_run *run, int32_t number, char *text) {
  const tcomp_tensor *tensor = tensor_of(number);
  void *given = run->pointers[number] = run->given[number];
  run->places[number] = ON_DEVICE;
  if (tensor->bytes == 0) return TCOMP_OK;
  run->places[number] = place_of(given);
  if (run->places[number] == ON_DEVICE) {
    if ((uintptr_t)given % ALIGNMENT == 0) return TCOMP_OK;
    return tcomp_fail(text, TCOMP_ERROR_ARGUMENT,
                           "%s is in the GPU's memory at %p; it must be at a multiple of %d", tensor->name, given,
                           ALIGNMENT);
  }
  if (device->staged[number] == 0)
    TRY("memory for a tensor", tcomp_cuda.allocate(&device->staged[number], tensor->bytes));
  if (run->places[number] == PAGEABLE && device->locked[number] == NULL)
    TRY("page-locked memory", tcomp_cuda.allocate_locked(&device->locked[number], tensor->bytes, 0));
  run->pointers[number] = (void *)(uintptr_t)device->staged[number];
  return TCOMP_OK;
}

/* The device reads page-locked memory alone: what is not is copied there, a piece at a time. */
static tcomp_status upload(tcomp_device *device, const tensors_of_run *run, int32_t number, char *text) {
  const tcomp_tensor *tensor = tensor_of(number);
  address to = device->staged[number];
  if (run->places[number] == LOCKED)
    TRY(tensor->name, tcomp_cuda.upload(to, run->given[number], tensor->bytes, run->stream));
  if (run->places[number] != PAGEABLE) return TCOMP_OK;
  char *locked = device->locked[number];
  for (size_t at = 0; at < tensor->bytes; at += PIECE) {
    size_t bytes = tensor->bytes - at < PIECE ? tensor->bytes - at : PIECE;
    memcpy(locked + at, (const char *)run->given[number] + at, bytes);
    TRY(tensor->name, tcomp_cuda.upload(to + at, locked + at, bytes, run->stream));
  }
  return TCOMP_OK;
}

static tcomp_status download(tcomp_device *device, const tensors_of_run *run, int32_t number, char *text) {
  const tcomp_tensor *tensor = tensor_of(number);
  if (run->places[number] == ON_DEVICE) return TCOMP_OK;
  void *to = run->places[number] == LOCKED ? run->given[number] : device->locked[number];
  TRY(tensor->name, tcomp_cuda.download(to, device->staged[number], tensor->bytes, run->stream));
  return TCOMP_OK;
}

/* Lets the other streams begin after what is in the first, or the first go on after the others. */
static int fork_streams(const tcomp_device *device) {
  int code = tcomp_cuda_stream_count > 1 ? tcomp_cuda.event_record(device->order, device->streams[0]) : 0;
  for (int32_t i = 1; i < tcomp_cuda_stream_count && code == 0; i++)
    code = tcomp_cuda.wait_event(device->streams[i], device->order, 0);
  return code;
}

static int join_streams(const tcomp_device *device) {
  int code = 0;
  for (int32_t i = 1; i < tcomp_cuda_stream_count && code == 0; i++) {
    code = tcomp_cuda.event_record(device->order, device->streams[i]);
    if (code == 0) code = tcomp_cuda.wait_event(device->streams[0], device->order, 0);
  }
  return code;
}

/* Records the steps as a graph in place of the one that was launched least recently. */
static tcomp_status record(tcomp_device *device, const tcomp_variant_info *variant, const tcomp_frame *frame,
                           tcomp_cuda_recording *recording, int32_t *step, char *text) {
  handle graph = NULL;
  if (recording->graph != NULL) {
    if (device->is_under_way) TRY("the run before", tcomp_cuda.event_synchronize(device->done));
    tcomp_cuda.graph_release(recording->graph);
    recording->graph = NULL;
  }
  TRY("recording", tcomp_cuda.capture_begin(device->streams[0], RELAXED));
  int code = fork_streams(device);
  if (code == 0) *step = variant->run(frame);
  if (code == 0 && *step < 0) code = join_streams(device);
  int ended = tcomp_cuda.capture_end(device->streams[0], &graph);
  if (*step >= 0) {
    if (graph != NULL) tcomp_cuda.graph_destroy(graph);
    return device->code == 0 ? TCOMP_OK : tcomp_cuda_refused(text, device->problem, device->code);
  }
  if (code == 0) code = ended;
  if (code == 0) code = tcomp_cuda.graph_instantiate(&recording->graph, graph, 0);
  if (graph != NULL) tcomp_cuda.graph_destroy(graph);
  if (code != 0) return tcomp_cuda_refused(text, "recording", code);
  return TCOMP_OK;
}

/* The graph for these pointers. */
static tcomp_status find_recording(tcomp_device *device, const tcomp_variant_info *variant, const tcomp_frame *frame,
                                   void *const *pointers, tcomp_cuda_recording **found, int32_t *step, char *text) {
  size_t bytes = (size_t)(tcomp_model.input_count + tcomp_model.output_count) * sizeof *pointers;
  tcomp_cuda_recording *oldest = &device->recordings[0];
  for (int32_t i = 0; i < TCOMP_CUDA_RECORDINGS; i++) {
    tcomp_cuda_recording *one = *found = &device->recordings[i];
    if (one->graph != NULL && memcmp(pointers, one->pointers, bytes) == 0) return TCOMP_OK;
    if (one->last_run < oldest->last_run) oldest = one;
  }
  *found = oldest;
  tcomp_status status = record(device, variant, frame, oldest, step, text);
  if (status == TCOMP_OK && *step < 0) memcpy(oldest->pointers, pointers, bytes);
  return status;
}

static tcomp_status run_steps(tcomp_device *device, const tcomp_variant_info *variant, const tcomp_frame *frame,
                              const tensors_of_run *run, int32_t *step, char *text) {
  tcomp_cuda_recording *recording = NULL;
  if (frame->nanoseconds != NULL) {
    *step = variant->run(frame);
    return *step < 0 || device->code == 0 ? TCOMP_OK : tcomp_cuda_refused(text, device->problem, device->code);
  }
  if (tcomp_pool_is_cancelled(frame->pool)) {
    *step = 0;
    return TCOMP_OK;
  }
  tcomp_status status = find_recording(device, variant, frame, run->pointers, &recording, step, text);
  if (status != TCOMP_OK || *step >= 0) return status;
  recording->last_run = ++device->runs;
  TRY("starting the run", tcomp_cuda.graph_launch(recording->graph, run->stream));
  return TCOMP_OK;
}

/* Puts a run into its stream, behind the run before, which has the same arena. */
static tcomp_status start(tcomp_device *device, const tcomp_variant_info *variant, const tcomp_frame *given,
                          const tensors_of_run *run, int32_t *step, char *text) {
  int32_t inputs = tcomp_model.input_count, outputs = tcomp_model.output_count;
  if (device->is_under_way) TRY("the run before", tcomp_cuda.wait_event(run->stream, device->done, 0));
  for (int32_t i = 0; i < inputs; i++) {
    tcomp_status status = upload(device, run, i, text);
    if (status != TCOMP_OK) return status;
  }
  tcomp_frame frame = *given;
  frame.arena = (char *)(uintptr_t)device->arena;
  frame.weights = (const char *)(uintptr_t)device->placed->weights;
  frame.packed = (char *)(uintptr_t)device->placed->packed;
  frame.inputs = run->pointers;
  frame.outputs = run->pointers + inputs;
  tcomp_status status = run_steps(device, variant, &frame, run, step, text);
  for (int32_t i = 0; status == TCOMP_OK && *step < 0 && i < outputs; i++)
    status = download(device, run, inputs + i, text);
  return status;
}

static tcomp_status run_and_wait(tcomp_device *device, const tcomp_variant_info *variant, const tcomp_frame *frame,
                                 const tensors_of_run *run, int32_t *step, char *text) {
  tcomp_status status = start(device, variant, frame, run, step, text);
  /* After a failure too: nothing may write to the caller's memory later. */
  int code = tcomp_cuda.synchronize(run->stream);
  if (status != TCOMP_OK || *step >= 0) return status;
  TRY("the run", code);
  device->is_under_way = 0;
  for (int32_t i = tcomp_model.input_count; i < tcomp_model.input_count + tcomp_model.output_count; i++)
    if (run->places[i] == PAGEABLE) memcpy(run->given[i], device->locked[i], tensor_of(i)->bytes);
  return TCOMP_OK;
}

static tcomp_status check_stream(const tensors_of_run *run, char *text) {
  int is_capturing = 0;
  for (int32_t i = 0; i < tcomp_model.input_count + tcomp_model.output_count; i++)
    if (run->places[i] == PAGEABLE)
      return tcomp_fail(text, TCOMP_ERROR_ARGUMENT,
                             "%s is in pageable memory of the CPU; a run in a stream needs it page-locked, or in "
                             "the GPU's memory",
                             tensor_of(i)->name);
  TRY("the stream", tcomp_cuda.is_capturing(run->stream, &is_capturing));
  if (is_capturing)
    return tcomp_fail(text, TCOMP_ERROR_ARGUMENT,
                           "the stream is being captured; a run is a graph of its own: start it outside");
  return TCOMP_OK;
}

static tcomp_status enqueue_current(tcomp_device *device, const tcomp_variant_info *variant, const tcomp_frame *frame,
                                    const tensors_of_run *run, int32_t *step, char *text) {
  tcomp_status status = check_stream(run, text);
  if (status != TCOMP_OK) return status;
  status = start(device, variant, frame, run, step, text);
  TRY("the end of the run", tcomp_cuda.event_record(device->done, run->stream)); /* a part of it after a failure */
  device->is_under_way = 1;
  return status;
}

typedef tcomp_status (*way)(tcomp_device *, const tcomp_variant_info *, const tcomp_frame *, const tensors_of_run *,
                            int32_t *, char *);

static tcomp_status in_context(tcomp_device *device, const tcomp_variant_info *variant, const tcomp_frame *frame,
                               handle stream, int32_t *step, char *text, way go) {
  int32_t inputs = tcomp_model.input_count, count = inputs + tcomp_model.output_count;
  place places[count + 1];
  void *given[count + 1], *pointers[count + 1];
  tensors_of_run run = {places, given, pointers, stream};
  tcomp_status status = TCOMP_OK;
  handle ignored;
  *step = -1;
  device->code = 0;
  for (int32_t i = 0; i < count; i++) given[i] = i < inputs ? frame->inputs[i] : frame->outputs[i - inputs];
  TRY("its context", tcomp_cuda.push(device->placed->context));
  for (int32_t i = 0; i < count && status == TCOMP_OK; i++) status = find(device, &run, i, text);
  if (status == TCOMP_OK) status = go(device, variant, frame, &run, step, text);
  tcomp_cuda.pop(&ignored);
  return status;
}

tcomp_status tcomp_cuda_run(tcomp_device *device, const tcomp_variant_info *variant, const tcomp_frame *frame,
                            int32_t *step, char *text) {
  return in_context(device, variant, frame, device->streams[0], step, text, run_and_wait);
}

tcomp_status tcomp_cuda_enqueue(tcomp_device *device, const tcomp_variant_info *variant, const tcomp_frame *frame,
                                void *stream, int32_t *step, char *text) {
  return in_context(device, variant, frame, stream, step, text, enqueue_current);
}
