/* Models on NVIDIA's GPUs, by the driver alone, which is loaded when the first context is created.
 *
 * A context has its own stream, arena, and buffers for inputs and outputs that the caller has in the CPU's
 * memory; those in the device's memory are used where they are. The steps of a run are recorded once as a
 * CUDA graph, and again when the caller's pointers change.
 *
 * Source: CUDA Driver API reference.
 */
#define _GNU_SOURCE
#include "cuda.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAJOR 75 /* CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR */
#define MINOR 76
#define LARGE_SHARED 8    /* CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES */
#define POINTER_TYPE 2    /* CU_POINTER_ATTRIBUTE_MEMORY_TYPE */
#define DEVICE_MEMORY 2   /* CU_MEMORYTYPE_DEVICE */
#define NON_BLOCKING 1    /* CU_STREAM_NON_BLOCKING */
#define RELAXED 2         /* CU_STREAM_CAPTURE_MODE_RELAXED */
#define OUT_OF_MEMORY 2   /* CUDA_ERROR_OUT_OF_MEMORY */
#define ALIGNMENT 16      /* of the widest load of a kernel, and of a tensor that tiles are copied of */
#define FROM_256_BYTES 3  /* CU_TENSOR_MAP_L2_PROMOTION_L2_256B */

typedef void *handle;
typedef uint64_t address; /* CUdeviceptr */

/* name in C, name in the library, parameters */
#define FUNCTIONS(F)                                                                                        \
  F(init, "cuInit", (unsigned))                                                                             \
  F(error_string, "cuGetErrorString", (int, const char **))                                                 \
  F(device_count, "cuDeviceGetCount", (int *))                                                              \
  F(device_get, "cuDeviceGet", (int *, int))                                                                \
  F(device_name, "cuDeviceGetName", (char *, int, int))                                                     \
  F(device_attribute, "cuDeviceGetAttribute", (int *, int, int))                                            \
  F(retain, "cuDevicePrimaryCtxRetain", (handle *, int))                                                    \
  F(release, "cuDevicePrimaryCtxRelease_v2", (int))                                                         \
  F(current, "cuCtxGetCurrent", (handle *))                                                                 \
  F(current_device, "cuCtxGetDevice", (int *))                                                              \
  F(push, "cuCtxPushCurrent_v2", (handle))                                                                  \
  F(pop, "cuCtxPopCurrent_v2", (handle *))                                                                  \
  F(allocate, "cuMemAlloc_v2", (address *, size_t))                                                         \
  F(release_memory, "cuMemFree_v2", (address))                                                              \
  F(upload, "cuMemcpyHtoDAsync_v2", (address, const void *, size_t, handle))                                \
  F(download, "cuMemcpyDtoHAsync_v2", (void *, address, size_t, handle))                                    \
  F(move, "cuMemcpyDtoDAsync_v2", (address, address, size_t, handle))                                       \
  F(pointer_attribute, "cuPointerGetAttribute", (void *, int, address))                                     \
  F(stream_create, "cuStreamCreate", (handle *, unsigned))                                                  \
  F(stream_destroy, "cuStreamDestroy_v2", (handle))                                                         \
  F(synchronize, "cuStreamSynchronize", (handle))                                                           \
  F(module_load, "cuModuleLoadData", (handle *, const void *))                                              \
  F(module_unload, "cuModuleUnload", (handle))                                                              \
  F(module_function, "cuModuleGetFunction", (handle *, handle, const char *))                               \
  F(function_attribute, "cuFuncSetAttribute", (handle, int, int))                                           \
  F(launch, "cuLaunchKernel",                                                                               \
    (handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, handle, void **, void **)) \
  F(event_create, "cuEventCreate", (handle *, unsigned))                                                    \
  F(event_destroy, "cuEventDestroy_v2", (handle))                                                           \
  F(event_record, "cuEventRecord", (handle, handle))                                                        \
  F(event_synchronize, "cuEventSynchronize", (handle))                                                      \
  F(event_elapsed, "cuEventElapsedTime", (float *, handle, handle))                                         \
  F(capture_begin, "cuStreamBeginCapture_v2", (handle, int))                                                \
  F(capture_end, "cuStreamEndCapture", (handle, handle *))                                                  \
  F(graph_instantiate, "cuGraphInstantiateWithFlags", (handle *, handle, unsigned long long))               \
  F(graph_launch, "cuGraphLaunch", (handle, handle))                                                        \
  F(graph_destroy, "cuGraphDestroy", (handle))                                                              \
  F(graph_release, "cuGraphExecDestroy", (handle))

typedef struct {
  _Alignas(64) uint64_t opaque[16];
} tensor_map; /* CUtensorMap */

/* What only libraries with code for sm_90a need, and drivers before CUDA 12 do not have. */
#define MAP_FUNCTION "cuTensorMapEncodeTiled"
typedef int (*encode_map)(tensor_map *, int, uint32_t, address, const uint64_t *, const uint64_t *, const uint32_t *,
                          const uint32_t *, int, int, int, int);

static struct {
#define FIELD(name, symbol, parameters) int(*name) parameters;
  FUNCTIONS(FIELD)
#undef FIELD
  encode_map encode_map;
} cuda;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static char driver_problem[TCOMP_ERROR_BYTES]; /* empty when the driver is loaded */

struct tcomp_device {
  int number;
  handle context, stream, begin, end;
  handle *modules, *functions;       /* of the variant's images; of all launches, NULL where not the variant's */
  int32_t first_image, end_image;
  address arena, weights;
  address *staged;                   /* for each input, then each output: 0 while none was needed */
  void **used;                       /* the pointers that the graph was recorded with, in the same order */
  handle graph;                      /* NULL: not recorded */
  const char *problem;               /* what the driver refused in this run, and with which code */
  int code;
};

__attribute__((format(printf, 3, 4))) static tcomp_status fail(char *text, tcomp_status status,
                                                               const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, TCOMP_ERROR_BYTES, format, arguments);
  va_end(arguments);
  return status;
}

static void load_driver(void) {
  void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) {
    snprintf(driver_problem, sizeof driver_problem,
             "no NVIDIA driver here: libcuda.so.1 is not to be loaded; install the driver of the GPU");
    return;
  }
#define LOAD(name, symbol, parameters)                                                                       \
  if ((*(void **)&cuda.name = dlsym(library, symbol)) == NULL) {                                             \
    snprintf(driver_problem, sizeof driver_problem, "the NVIDIA driver has no %s; install a newer one", symbol); \
    return;                                                                                                  \
  }
  FUNCTIONS(LOAD)
#undef LOAD
  *(void **)&cuda.encode_map = dlsym(library, MAP_FUNCTION);
  if (cuda.encode_map == NULL && tcomp_cuda_map_count > 0)
    snprintf(driver_problem, sizeof driver_problem, "the NVIDIA driver has no %s; install a newer one", MAP_FUNCTION);
}

static const char *words(int code) {
  const char *text = NULL;
  return cuda.error_string(code, &text) == 0 && text != NULL ? text : "unknown error";
}

static tcomp_status refused(char *text, const char *what, int code) {
  tcomp_status status = code == OUT_OF_MEMORY ? TCOMP_ERROR_MEMORY : TCOMP_ERROR_RUN;
  return fail(text, status, "GPU: %s: %s (CUDA error %d)", what, words(code), code);
}

#define TRY(what, call)                                          \
  do {                                                           \
    int code_ = (call);                                          \
    if (code_ != 0) return refused(text, what, code_);           \
  } while (0)

/* ---- creation --------------------------------------------------------------------------------------- */

static int runs_on(const tcomp_cuda_image *image, int capability) {
  return image->exact ? image->capability == capability : image->capability <= capability;
}

static int is_wanted(const tcomp_options *options, int32_t variant) {
  return options->variant == NULL || strcmp(options->variant, tcomp_model.variants[variant].name) == 0;
}

static tcomp_status choose_variant(tcomp_device *device, const tcomp_options *options,
                                   const tcomp_variant_info **variant, char *text) {
  int major = 0, minor = 0;
  char name[128] = "";
  TRY("asking its capability", cuda.device_attribute(&major, MAJOR, device->number));
  TRY("asking its capability", cuda.device_attribute(&minor, MINOR, device->number));
  TRY("asking its name", cuda.device_name(name, sizeof name, device->number));
  for (int32_t i = 0; i < tcomp_model.variant_count; i++) {
    device->first_image = tcomp_cuda_variant_images[i];
    device->end_image = tcomp_cuda_variant_images[i + 1];
    *variant = &tcomp_model.variants[i];
    if (!is_wanted(options, i)) continue;
    if (device->first_image == device->end_image) return TCOMP_OK; /* nothing but copies */
    if (runs_on(&tcomp_cuda_images[device->first_image], 10 * major + minor)) return TCOMP_OK;
  }
  return fail(text, TCOMP_ERROR_CPU,
              "the library has code for %s, and %s has compute capability %d.%d; compile it for cuda:sm_%d%d",
              tcomp_model.target, name, major, minor, major, minor);
}

static tcomp_status load_code(tcomp_device *device, char *text) {
  int32_t count = device->end_image - device->first_image;
  device->modules = calloc((size_t)count + 1, sizeof *device->modules);
  device->functions = calloc((size_t)tcomp_cuda_launch_count + 1, sizeof *device->functions);
  if (device->modules == NULL || device->functions == NULL)
    return fail(text, TCOMP_ERROR_MEMORY, "out of memory");
  for (int32_t i = 0; i < count; i++) {
    int code = cuda.module_load(&device->modules[i], tcomp_cuda_images[device->first_image + i].data);
    if (code != 0)
      return fail(text, code == OUT_OF_MEMORY ? TCOMP_ERROR_MEMORY : TCOMP_ERROR_CPU,
                  "the driver cannot load the code of the library: %s (CUDA error %d); a newer driver may",
                  words(code), code);
  }
  for (int32_t i = 0; i < tcomp_cuda_launch_count; i++) {
    const tcomp_cuda_launch_info *launch = &tcomp_cuda_launches[i];
    if (launch->image < device->first_image || launch->image >= device->end_image) continue;
    handle module = device->modules[launch->image - device->first_image];
    TRY(launch->symbol, cuda.module_function(&device->functions[i], module, launch->symbol));
    if (launch->dynamic_shared_bytes > 0)
      TRY(launch->symbol, cuda.function_attribute(device->functions[i], LARGE_SHARED,
                                                  (int)launch->dynamic_shared_bytes));
  }
  return TCOMP_OK;
}

static tcomp_status fill_device(tcomp_device *device, const tcomp_options *options, const char *weights,
                                const tcomp_variant_info **variant, char *text) {
  size_t tensors = (size_t)(tcomp_model.input_count + tcomp_model.output_count);
  tcomp_status status = choose_variant(device, options, variant, text);
  if (status != TCOMP_OK) return status;
  device->staged = calloc(tensors + 1, sizeof *device->staged);
  device->used = calloc(tensors + 1, sizeof *device->used);
  if (device->staged == NULL || device->used == NULL) return fail(text, TCOMP_ERROR_MEMORY, "out of memory");
  status = load_code(device, text);
  if (status != TCOMP_OK) return status;
  TRY("a stream", cuda.stream_create(&device->stream, NON_BLOCKING));
  TRY("an event", cuda.event_create(&device->begin, 0));
  TRY("an event", cuda.event_create(&device->end, 0));
  if (tcomp_model.arena_bytes > 0)
    TRY("memory for tensors", cuda.allocate(&device->arena, tcomp_model.arena_bytes));
  if (tcomp_model.weights_bytes > 0) {
    TRY("memory for weights", cuda.allocate(&device->weights, tcomp_model.weights_bytes));
    TRY("copying the weights",
        cuda.upload(device->weights, weights, tcomp_model.weights_bytes, device->stream));
  }
  TRY("copying the weights", cuda.synchronize(device->stream));
  return TCOMP_OK;
}

/* The device of the caller's current CUDA context, or the first one. */
static tcomp_status find_device(int *number, char *text) {
  handle context = NULL;
  int count = 0, code = cuda.init(0);
  if (code == 0) code = cuda.device_count(&count);
  if (code != 0 || count == 0)
    return fail(text, TCOMP_ERROR_CPU, "no GPU here: %s (CUDA error %d)",
                code == 0 ? "the driver knows none" : words(code), code);
  if (cuda.current(&context) == 0 && context != NULL && cuda.current_device(number) == 0) return TCOMP_OK;
  TRY("the first device", cuda.device_get(number, 0));
  return TCOMP_OK;
}

static void destroy(tcomp_device *device) {
  handle ignored;
  size_t tensors = (size_t)(tcomp_model.input_count + tcomp_model.output_count);
  if (cuda.push(device->context) == 0) {
    if (device->stream != NULL) cuda.synchronize(device->stream);
    if (device->graph != NULL) cuda.graph_release(device->graph);
    for (size_t i = 0; device->staged != NULL && i < tensors; i++)
      if (device->staged[i] != 0) cuda.release_memory(device->staged[i]);
    if (device->arena != 0) cuda.release_memory(device->arena);
    if (device->weights != 0) cuda.release_memory(device->weights);
    for (int32_t i = 0; device->modules != NULL && i < device->end_image - device->first_image; i++)
      if (device->modules[i] != NULL) cuda.module_unload(device->modules[i]);
    if (device->begin != NULL) cuda.event_destroy(device->begin);
    if (device->end != NULL) cuda.event_destroy(device->end);
    if (device->stream != NULL) cuda.stream_destroy(device->stream);
    cuda.pop(&ignored);
  }
  cuda.release(device->number);
  free(device->staged);
  free(device->used);
  free(device->modules);
  free(device->functions);
  free(device);
}

static tcomp_status create(const tcomp_options *options, const char *weights, tcomp_device **result,
                           const tcomp_variant_info **variant, char *text) {
  int number = 0;
  handle ignored;
  pthread_once(&once, load_driver);
  if (driver_problem[0] != '\0') return fail(text, TCOMP_ERROR_CPU, "%s", driver_problem);
  tcomp_status status = find_device(&number, text);
  if (status != TCOMP_OK) return status;
  tcomp_device *device = calloc(1, sizeof *device);
  if (device == NULL) return fail(text, TCOMP_ERROR_MEMORY, "out of memory");
  device->number = number;
  int code = cuda.retain(&device->context, number);
  if (code != 0) {
    free(device);
    return refused(text, "a context", code);
  }
  code = cuda.push(device->context);
  status = code == 0 ? fill_device(device, options, weights, variant, text) : refused(text, "a context", code);
  if (code == 0) cuda.pop(&ignored);
  if (status == TCOMP_OK)
    *result = device;
  else
    destroy(device);
  return status;
}

/* ---- steps --------------------------------------------------------------------------------------------- */

static int32_t note(const tcomp_frame *frame, const char *what, int code) {
  if (code != 0) {
    frame->device->problem = what;
    frame->device->code = code;
  }
  return code;
}

static int encode(const tcomp_cuda_map_info *info, const void *const *arguments, tensor_map *map) {
  static const uint32_t every[TCOMP_CUDA_MAP_RANK] = {1, 1, 1};
  address tensor = (address)(uintptr_t)arguments[info->parameter];
  return cuda.encode_map(map, info->type, TCOMP_CUDA_MAP_RANK, tensor, info->extents, info->strides, info->box, every, 0,
                         info->swizzle, FROM_256_BYTES, 0);
}

/* Maps are made of the pointers that a launch has. A graph keeps them, and is recorded again for other pointers. */
int32_t tcomp_cuda_launch(const tcomp_frame *frame, int32_t first, int32_t count, const void *const *arguments,
                          int32_t argument_count) {
  tensor_map maps[tcomp_cuda_most_maps + 1];
  void *addresses[argument_count + tcomp_cuda_most_maps + 1];
  for (int32_t i = 0; i < argument_count; i++) addresses[i] = (void *)&arguments[i];
  for (int32_t i = first; i < first + count; i++) {
    const tcomp_cuda_launch_info *launch = &tcomp_cuda_launches[i];
    const uint32_t *g = launch->grid, *b = launch->block;
    for (int32_t j = 0; j < launch->map_count; j++) {
      int code = encode(&tcomp_cuda_maps[launch->first_map + j], arguments, &maps[j]);
      if (code != 0) return note(frame, launch->symbol, code);
      addresses[argument_count + j] = &maps[j];
    }
    int code = cuda.launch(frame->device->functions[i], g[0], g[1], g[2], b[0], b[1], b[2],
                           launch->dynamic_shared_bytes, frame->device->stream, addresses, NULL);
    if (code != 0) return note(frame, launch->symbol, code);
  }
  return 0;
}

int32_t tcomp_cuda_copy(const tcomp_frame *frame, void *to, const void *from, size_t bytes) {
  return note(frame, "a copy",
              cuda.move((address)(uintptr_t)to, (address)(uintptr_t)from, bytes, frame->device->stream));
}

int32_t tcomp_cuda_begin(const tcomp_frame *frame) {
  if (frame->nanoseconds == NULL) return 0;
  return note(frame, "an event", cuda.event_record(frame->device->begin, frame->device->stream));
}

int32_t tcomp_cuda_end(const tcomp_frame *frame, int32_t step) {
  tcomp_device *device = frame->device;
  float milliseconds = 0;
  if (frame->nanoseconds == NULL) return 0;
  int code = cuda.event_record(device->end, device->stream);
  if (code == 0) code = cuda.event_synchronize(device->end);
  if (code == 0) code = cuda.event_elapsed(&milliseconds, device->begin, device->end);
  frame->nanoseconds[step] += (uint64_t)(milliseconds * 1e6f);
  return note(frame, tcomp_model.step_labels[step], code);
}

/* ---- runs ------------------------------------------------------------------------------------------------ */

static int is_on_device(const void *pointer) {
  unsigned type = 0;
  return cuda.pointer_attribute(&type, POINTER_TYPE, (address)(uintptr_t)pointer) == 0 && type == DEVICE_MEMORY;
}

/* Where the device finds a tensor: at the caller's pointer, or in a buffer of its own. */
static tcomp_status place(tcomp_device *device, int32_t number, const tcomp_tensor *tensor, void *given,
                          void **found, char *text) {
  *found = given;
  if (tensor->bytes == 0) return TCOMP_OK;
  if (is_on_device(given)) {
    if ((uintptr_t)given % ALIGNMENT == 0) return TCOMP_OK;
    return fail(text, TCOMP_ERROR_ARGUMENT, "%s is in the GPU's memory at %p; it must be at a multiple of %d",
                tensor->name, given, ALIGNMENT);
  }
  if (device->staged[number] == 0) TRY("memory for a tensor", cuda.allocate(&device->staged[number], tensor->bytes));
  *found = (void *)(uintptr_t)device->staged[number];
  return TCOMP_OK;
}

/* Records the steps, which all go to the stream, as a graph. */
static tcomp_status record(tcomp_device *device, const tcomp_variant_info *variant, const tcomp_frame *frame,
                           int32_t *step, char *text) {
  handle graph = NULL;
  if (device->graph != NULL) cuda.graph_release(device->graph);
  device->graph = NULL;
  TRY("recording", cuda.capture_begin(device->stream, RELAXED));
  *step = variant->run(frame);
  int code = cuda.capture_end(device->stream, &graph);
  if (*step >= 0) {
    if (graph != NULL) cuda.graph_destroy(graph);
    return device->code == 0 ? TCOMP_OK : refused(text, device->problem, device->code);
  }
  if (code == 0) code = cuda.graph_instantiate(&device->graph, graph, 0);
  if (graph != NULL) cuda.graph_destroy(graph);
  if (code != 0) return refused(text, "recording", code);
  return TCOMP_OK;
}

static tcomp_status run_steps(tcomp_device *device, const tcomp_variant_info *variant, const tcomp_frame *frame,
                              void *const *pointers, int32_t *step, char *text) {
  size_t bytes = (size_t)(tcomp_model.input_count + tcomp_model.output_count) * sizeof *pointers;
  if (frame->nanoseconds != NULL) {
    *step = variant->run(frame);
    return *step < 0 || device->code == 0 ? TCOMP_OK : refused(text, device->problem, device->code);
  }
  if (tcomp_pool_is_cancelled(frame->pool)) {
    *step = 0;
    return TCOMP_OK;
  }
  if (device->graph == NULL || memcmp(pointers, device->used, bytes) != 0) {
    tcomp_status status = record(device, variant, frame, step, text);
    if (status != TCOMP_OK || *step >= 0) return status;
    memcpy(device->used, pointers, bytes);
  }
  TRY("starting the run", cuda.graph_launch(device->graph, device->stream));
  return TCOMP_OK;
}

static tcomp_status run_current(tcomp_device *device, const tcomp_variant_info *variant,
                                const tcomp_frame *given, int32_t *step, char *text) {
  int32_t inputs = tcomp_model.input_count, outputs = tcomp_model.output_count;
  void *pointers[inputs + outputs + 1];
  for (int32_t i = 0; i < inputs + outputs; i++) {
    const tcomp_tensor *tensor = i < inputs ? &tcomp_model.inputs[i] : &tcomp_model.outputs[i - inputs];
    void *pointer = i < inputs ? given->inputs[i] : given->outputs[i - inputs];
    tcomp_status status = place(device, i, tensor, pointer, &pointers[i], text);
    if (status != TCOMP_OK) return status;
    if (i < inputs && pointers[i] != pointer)
      TRY(tensor->name, cuda.upload((address)(uintptr_t)pointers[i], pointer, tensor->bytes, device->stream));
  }
  tcomp_frame frame = *given;
  frame.arena = (char *)(uintptr_t)device->arena;
  frame.weights = (const char *)(uintptr_t)device->weights;
  frame.inputs = pointers;
  frame.outputs = pointers + inputs;
  tcomp_status status = run_steps(device, variant, &frame, pointers, step, text);
  if (status != TCOMP_OK || *step >= 0) return status;
  for (int32_t i = 0; i < outputs; i++)
    if (pointers[inputs + i] != given->outputs[i])
      TRY(tcomp_model.outputs[i].name,
          cuda.download(given->outputs[i], (address)(uintptr_t)pointers[inputs + i], tcomp_model.outputs[i].bytes,
                        device->stream));
  TRY("the run", cuda.synchronize(device->stream));
  return TCOMP_OK;
}

static tcomp_status run(tcomp_device *device, const tcomp_variant_info *variant, const tcomp_frame *frame,
                        int32_t *step, char *text) {
  handle ignored;
  *step = -1;
  device->code = 0;
  TRY("its context", cuda.push(device->context));
  tcomp_status status = run_current(device, variant, frame, step, text);
  if (status != TCOMP_OK) cuda.synchronize(device->stream); /* nothing may write to the caller's memory later */
  cuda.pop(&ignored);
  return status;
}

const tcomp_backend tcomp_cuda_backend = {create, destroy, run};
