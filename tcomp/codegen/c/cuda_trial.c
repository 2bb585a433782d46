/* One kernel on a GPU behind functions that a server of TVM's RPC calls, which needs no CUDA itself: its
 * arguments come and go in the memory of the CPU, and are on the GPU meanwhile.
 *
 * Source: TVM FFI's c_api.h and DLPack's dlpack.h, of which the few types used are declared here.
 */
#include "cuda_trial.h"

#include <stdio.h>
#include <stdlib.h>

#define INTEGER 1           /* kTVMFFIInt */
#define TENSOR 70           /* kTVMFFITensor: what TVM passes within a process; its RPC server passes DLTensors */
#define TENSOR_HEADER 24    /* bytes of a tensor object before its DLTensor */
#define MAJOR 75            /* CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR */
#define MINOR 76 /* CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR */

typedef struct {
  int32_t type;
  uint32_t padding;
  union {
    int64_t integer;
    void *pointer;
  } value;
} any; /* TVMFFIAny */

typedef struct {
  void *data;
  int32_t device[2], rank;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
} tensor; /* DLTensor */

extern void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message);
#define FUNCTION(name) \
  __attribute__((visibility("default"))) int __tvm_ffi_##name(void *self, const any *arguments, int32_t count, any *result)

static handle context, module, *functions, begin, end;
static void **memory; /* of the kernel's parameters */
static address flush;

static int fail(const char *what, int code) {
  char text[256];
  snprintf(text, sizeof text, "GPU: %s: %s (CUDA error %d)", what, tcomp_cuda_words(code), code);
  TVMFFIErrorSetRaisedFromCStr("RuntimeError", text);
  return -1;
}

#define TRY(what, call)                         \
  do {                                          \
    int code_ = (call);                         \
    if (code_ != 0) return fail(what, code_);   \
  } while (0)

static const tensor *tensor_of(const any *argument) {
  const char *given = argument->value.pointer;
  return (const tensor *)(argument->type == TENSOR ? given + TENSOR_HEADER : given);
}

static char *data_of(const any *argument) {
  const tensor *given = tensor_of(argument);
  return (char *)given->data + given->byte_offset;
}

static int open_device(int *device) {
  const char *problem = tcomp_cuda_load(tcomp_cuda_map_count > 0);
  if (problem != NULL) {
    TVMFFIErrorSetRaisedFromCStr("RuntimeError", problem);
    return -1;
  }
  TRY("no GPU here", tcomp_cuda.init(0));
  TRY("the first device", tcomp_cuda.device_get(device, 0));
  if (context == NULL) TRY("a context", tcomp_cuda.retain(&context, *device));
  handle ignored;
  tcomp_cuda.pop(&ignored); /* calls may come in other threads, and more than once */
  TRY("its context", tcomp_cuda.push(context));
  return 0;
}

/* describe(bytes: uint8[n]) -> the capability, 80 for 8.0; `bytes` get the GPU's name. */
FUNCTION(describe) {
  int device = 0, major = 0, minor = 0;
  if (open_device(&device) != 0) return -1;
  const tensor *name = tensor_of(&arguments[0]);
  TRY("its name", tcomp_cuda.device_name(data_of(&arguments[0]), (int)name->shape[0], device));
  TRY("its capability", tcomp_cuda.device_attribute(&major, MAJOR, device));
  TRY("its capability", tcomp_cuda.device_attribute(&minor, MINOR, device));
  result->type = INTEGER;
  result->value.integer = 10 * major + minor;
  (void)self, (void)count;
  return 0;
}

/* prepare(inputs...): the code and all arguments on the GPU. */
FUNCTION(prepare) {
  int device = 0;
  if (open_device(&device) != 0) return -1;
  TRY("loading the code", tcomp_cuda.module_load(&module, tcomp_cuda_images[0].data));
  functions = calloc((size_t)tcomp_cuda_launch_count + 1, sizeof *functions);
  memory = calloc((size_t)tcomp_trial_parameters + 1, sizeof *memory);
  if (functions == NULL || memory == NULL) return fail("out of memory", TCOMP_CUDA_OUT_OF_MEMORY);
  for (int32_t i = 0; i < tcomp_cuda_launch_count; i++)
    TRY(tcomp_cuda_launches[i].symbol, tcomp_cuda_find(&tcomp_cuda_launches[i], module, &functions[i]));
  for (int32_t i = 0; i < tcomp_trial_parameters; i++) {
    uint64_t bytes = tcomp_trial_bytes[i];
    TRY("memory for a tensor", tcomp_cuda.allocate((address *)&memory[i], bytes > 0 ? bytes : 1));
    if (i < count && bytes > 0)
      TRY("an input", tcomp_cuda.upload((address)(uintptr_t)memory[i], data_of(&arguments[i]), bytes, NULL));
  }
  TRY("an event", tcomp_cuda.event_create(&begin, 0));
  TRY("an event", tcomp_cuda.event_create(&end, 0));
  TRY("memory to flush the cache", tcomp_cuda.allocate(&flush, tcomp_trial_flush_bytes));
  TRY("the inputs", tcomp_cuda.synchronize(NULL));
  (void)self, (void)result;
  return 0;
}

static int start(void) {
  for (int32_t i = 0; i < tcomp_cuda_launch_count; i++)
    TRY(tcomp_cuda_launches[i].symbol,
        tcomp_cuda_start(&tcomp_cuda_launches[i], functions[i], NULL, (const void *const *)memory, tcomp_trial_parameters));
  return 0;
}

FUNCTION(run) {
  int device = 0;
  if (open_device(&device) != 0 || start() != 0) return -1;
  TRY("the run", tcomp_cuda.synchronize(NULL));
  (void)self, (void)arguments, (void)count, (void)result;
  return 0;
}

/* time(number, seconds: float64[n]): of a run, averaged over `number` with a cold second-level cache, n times. */
FUNCTION(time) {
  int device = 0;
  if (open_device(&device) != 0) return -1;
  int64_t number = arguments[0].value.integer;
  const tensor *given = tensor_of(&arguments[1]);
  double *seconds = (double *)data_of(&arguments[1]);
  for (int64_t i = 0; i < given->shape[0]; i++) {
    seconds[i] = 0;
    for (int64_t k = 0; k < number; k++) {
      float milliseconds = 0;
      TRY("flushing the cache", tcomp_cuda.fill(flush, 0, tcomp_trial_flush_bytes, NULL));
      TRY("an event", tcomp_cuda.event_record(begin, NULL));
      if (start() != 0) return -1;
      TRY("an event", tcomp_cuda.event_record(end, NULL));
      TRY("the run", tcomp_cuda.event_synchronize(end));
      TRY("its time", tcomp_cuda.event_elapsed(&milliseconds, begin, end));
      seconds[i] += milliseconds * 1e-3 / (double)number;
    }
  }
  (void)self, (void)count, (void)result;
  return 0;
}

/* fetch(outputs...): what the last run computed. */
FUNCTION(fetch) {
  int device = 0;
  if (open_device(&device) != 0) return -1;
  for (int32_t i = 0; i < count; i++) {
    int32_t parameter = tcomp_trial_parameters - count + i;
    address from = (address)(uintptr_t)memory[parameter];
    TRY("an output", tcomp_cuda.download(data_of(&arguments[i]), from, tcomp_trial_bytes[parameter], NULL));
  }
  TRY("the outputs", tcomp_cuda.synchronize(NULL));
  (void)self, (void)result;
  return 0;
}
