/* Every wrong argument is an error with a text, and none of them harms the context. Takes `chain`. */
#define _GNU_SOURCE
#include <sched.h>

#include "chain.h"
#include "check.h"

static CHAIN_INPUT0_TYPE x[CHAIN_INPUT0_ELEMENTS + 1];
static float out0[CHAIN_OUTPUT0_ELEMENTS], out1[CHAIN_OUTPUT1_ELEMENTS], out2[CHAIN_OUTPUT2_ELEMENTS],
    out3[CHAIN_OUTPUT3_ELEMENTS + CHAIN_OUTPUT2_ELEMENTS + 1]; /* a buffer that begins in it overlaps no other */
static tcomp_buffer good[4] = {
    {out0, sizeof out0}, {out1, sizeof out1}, {out2, sizeof out2}, {out3, CHAIN_OUTPUT3_BYTES}};
static tcomp_buffer input = {x, CHAIN_INPUT0_BYTES};
static tcomp_context *context;

static tcomp_status with(int32_t output, void *data, size_t bytes) {
  tcomp_buffer outputs[4];
  memcpy(outputs, good, sizeof outputs);
  outputs[output] = (tcomp_buffer){data, bytes};
  return tcomp_run(context, &input, 1, outputs, 4);
}

static tcomp_status with_input(void *data, size_t bytes) {
  tcomp_buffer buffer = {data, bytes};
  return tcomp_run(context, &buffer, 1, good, 4);
}

static void counts_and_pointers(void) {
  uint64_t nanoseconds[16];
  CHECK(tcomp_run(context, &input, 0, good, 4) == TCOMP_ERROR_ARGUMENT)
  SAYS(context, "0 inputs given; the model has 1")
  CHECK(tcomp_run(context, &input, 1, good, 5) == TCOMP_ERROR_ARGUMENT)
  SAYS(context, "5 outputs given; the model has 4")
  CHECK(tcomp_run(context, &input, -1, good, 4) == TCOMP_ERROR_ARGUMENT)
  CHECK(tcomp_run(context, NULL, 1, good, 4) == TCOMP_ERROR_ARGUMENT)
  SAYS(context, "the array of inputs is NULL")
  CHECK(tcomp_run(context, &input, 1, NULL, 4) == TCOMP_ERROR_ARGUMENT)
  SAYS(context, "the array of outputs is NULL")
  CHECK(with_input(NULL, CHAIN_INPUT0_BYTES) == TCOMP_ERROR_ARGUMENT)
  SAYS(context, "input 0 (x) is NULL")
  CHECK(with(2, NULL, sizeof out2) == TCOMP_ERROR_ARGUMENT)
  SAYS(context, "output 2")
  CHECK(with_input(x, CHAIN_INPUT0_BYTES + 1) == TCOMP_ERROR_ARGUMENT)
  SAYS(context, "input 0 (x) has 513 bytes; it must have 512")
  CHECK(with(0, out0, 0) == TCOMP_ERROR_ARGUMENT)
  CHECK(with(0, out0, (size_t)-1) == TCOMP_ERROR_ARGUMENT)
  CHECK(tcomp_profile(context, &input, 1, good, 4, NULL, tcomp_step_count()) == TCOMP_ERROR_ARGUMENT)
  CHECK(tcomp_profile(context, &input, 1, good, 4, nanoseconds, tcomp_step_count() + 1) == TCOMP_ERROR_ARGUMENT)
  SAYS(context, "nanoseconds must have")
}

static void places(void) {
  CHECK(with_input((char *)x + 1, CHAIN_INPUT0_BYTES) == TCOMP_ERROR_ARGUMENT)
  SAYS(context, "it must be at a multiple of 4")
  CHECK(with(0, (char *)out0 + 2, sizeof out0) == TCOMP_ERROR_ARGUMENT)
  CHECK(with_input(x + 1, CHAIN_INPUT0_BYTES) == TCOMP_OK) /* an element's alignment is enough */
  CHECK(with(1, x, sizeof out1) == TCOMP_ERROR_ARGUMENT)
  SAYS(context, "overlaps input 0 (x)")
  CHECK(with(2, (char *)out3 + 4, sizeof out2) == TCOMP_ERROR_ARGUMENT)
  SAYS(context, "output 3")
  SAYS(context, "overlaps output 2")
  CHECK(with(2, out3, sizeof out2) == TCOMP_ERROR_ARGUMENT)
}

static void no_context(void) {
  uint64_t nanoseconds[16];
  CHECK(tcomp_run(NULL, &input, 1, good, 4) == TCOMP_ERROR_ARGUMENT)
  SAYS(NULL, "tcomp_run: context is NULL")
  CHECK(tcomp_profile(NULL, &input, 1, good, 4, nanoseconds, 1) == TCOMP_ERROR_ARGUMENT)
  SAYS(NULL, "tcomp_profile: context is NULL")
  CHECK(tcomp_enqueue(NULL, &input, 1, good, 4, NULL) == TCOMP_ERROR_ARGUMENT)
  SAYS(NULL, "tcomp_enqueue: context is NULL")
  CHECK(tcomp_cancel(NULL) == TCOMP_ERROR_ARGUMENT)
  SAYS(NULL, "tcomp_cancel: context is NULL")
  CHECK(tcomp_set_threads(NULL, 1) == TCOMP_ERROR_ARGUMENT)
  CHECK(tcomp_threads(NULL) == 0)
  CHECK(tcomp_create(NULL, NULL) == TCOMP_ERROR_ARGUMENT)
  SAYS(NULL, "tcomp_create: context is NULL")
  tcomp_destroy(NULL);
}

static tcomp_status create(const void *options) {
  tcomp_context *made = context; /* anything */
  tcomp_status status = tcomp_create(options, &made);
  CHECK((made == NULL) == (status != TCOMP_OK))
  tcomp_destroy(made);
  return status;
}

/* What a program was compiled with that has the header of ABI version 1. */
typedef struct {
  size_t struct_bytes;
  int32_t threads;
  const char *weights_path;
  const void *weights;
  size_t weights_bytes;
  void *(*allocate)(void *user, size_t bytes, size_t alignment);
  void (*release)(void *user, void *memory);
  void *allocator_user;
  void (*parallel)(void *user, int32_t count, void (*task)(void *data, int32_t index), void *data);
  void *parallel_user;
} options_of_version_1;

static void options_of_other_versions(void) {
  struct {
    options_of_version_1 options;
    char behind[sizeof(tcomp_options)];
  } old;
  struct {
    tcomp_options options;
    uint64_t unknown;
  } newer;
  memset(&old, 0xff, sizeof old); /* what is behind the caller's struct is not read */
  old.options = (options_of_version_1){.struct_bytes = sizeof old.options, .threads = 1};
  CHECK(create(&old) == TCOMP_OK)
  memset(&newer, 0, sizeof newer);
  newer.options.struct_bytes = sizeof newer;
  CHECK(create(&newer) == TCOMP_OK)
  newer.unknown = (uint64_t)1 << 40;
  CHECK(create(&newer) == TCOMP_ERROR_ARGUMENT)
  SAYS(NULL, "a field after byte")
}

/* One of the CPUs that a mask can name and this thread cannot use; -1: there is none. */
static int absent_cpu(void) {
  cpu_set_t set;
  int cpu = 63;
  CHECK(sched_getaffinity(0, sizeof set, &set) == 0)
  while (cpu >= 0 && CPU_ISSET(cpu, &set)) cpu--;
  return cpu;
}

static void wrong_options(void) {
  tcomp_options options = {0};
  CHECK(create(&options) == TCOMP_ERROR_ARGUMENT)
  SAYS(NULL, "struct_bytes is 0")
  options.struct_bytes = (size_t)-1;
  CHECK(create(&options) == TCOMP_ERROR_ARGUMENT)
  options = (tcomp_options){.struct_bytes = sizeof options, .threads = -1};
  CHECK(create(&options) == TCOMP_ERROR_ARGUMENT)
  SAYS(NULL, "threads is -1")
  options = (tcomp_options){.struct_bytes = sizeof options, .release = (void (*)(void *, void *))abort};
  CHECK(create(&options) == TCOMP_ERROR_ARGUMENT)
  SAYS(NULL, "only one of allocate and release")
  options = (tcomp_options){.struct_bytes = sizeof options, .cpus = 3};
  CHECK(create(&options) == TCOMP_ERROR_ARGUMENT)
  SAYS(NULL, "cpus is 3")
  int absent = absent_cpu();
  options = (tcomp_options){.struct_bytes = sizeof options, .cpu_mask = absent < 0 ? 0 : (uint64_t)1 << absent};
  CHECK(create(&options) == (absent < 0 ? TCOMP_OK : TCOMP_ERROR_ARGUMENT))
  if (absent >= 0) SAYS(NULL, "this thread may use none of these CPUs")
  options = (tcomp_options){.struct_bytes = sizeof options, .threads = 1000000};
  CHECK(create(&options) == TCOMP_OK) /* as many as there are pieces of a loop */
}

int main(void) {
  CHECK(tcomp_abi_version() == TCOMP_ABI_VERSION)
  CHECK(tcomp_input(1) == NULL && tcomp_input(-1) == NULL && tcomp_output(4) == NULL)
  CHECK(tcomp_step_label(-1) == NULL && tcomp_step_label(tcomp_step_count()) == NULL)
  no_context();
  wrong_options();
  options_of_other_versions();
  CHECK(tcomp_create(NULL, &context) == TCOMP_OK)
  counts_and_pointers();
  places();
  CHECK(tcomp_set_threads(context, -1) == TCOMP_ERROR_ARGUMENT)
  CHECK(tcomp_enqueue(context, &input, 1, good, 4, NULL) == TCOMP_ERROR_ARGUMENT)
  SAYS(context, "the library runs on the CPU, which has no streams; call tcomp_run")
  for (size_t i = 0; i < CHAIN_INPUT0_ELEMENTS; i++) x[i] = 2;
  CHECK(tcomp_run(context, &input, 1, good, 4) == TCOMP_OK)
  CHECK(out1[0] == 1 && out2[0] == -1 && out3[5] == 2 && out0[0] > 5.43f && out0[0] < 5.44f)
  tcomp_destroy(context);
  return 0;
}
