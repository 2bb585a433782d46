/* What one core can do at best: fused multiply-adds, and reading a working set of a given size again and again.
 * tcomp.codegen.machine compiles it for the CPU it runs on, VECTOR_BYTES being the size of a vector register. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default")))
#define CHAINS 12 /* independent sums: more than latency times ports of any CPU */
#define READS 8

typedef float vector __attribute__((vector_size(VECTOR_BYTES)));

static volatile float sink;

/* Floating-point operations of `steps` steps, which take some nanoseconds each. */
API double tcomp_machine_multiply_add(int64_t steps) {
  volatile float unknown = 0.1f; /* else the compiler merges equal chains */
  vector sums[CHAINS], x = {0}, y = {0};
  for (int i = 0; i < CHAINS; i++) sums[i] = x + unknown * (float)(i + 1);
  x += 0.999f;
  y += 0.0001f;
  for (int64_t step = 0; step < steps; step++) {
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) sums[i] = sums[i] * x + y;
  }
  for (int i = 1; i < CHAINS; i++) sums[0] += sums[i];
  sink = sums[0][0];
  return 2.0 * CHAINS * VECTOR_BYTES / sizeof(float) * (double)steps;
}

/* `bytes` of memory, mapped and zero; NULL: there is not so much. Given back with tcomp_machine_release. */
API void *tcomp_machine_allocate(size_t bytes) {
  void *memory = NULL;
  return posix_memalign(&memory, 4096, bytes) == 0 ? memset(memory, 0, bytes) : NULL;
}

API void tcomp_machine_release(void *memory) { free(memory); }

/* Reads `bytes` of `memory` `times` times; answers the bytes read. */
API double tcomp_machine_read(const void *memory, size_t bytes, int64_t times) {
  const vector *data = memory;
  size_t vectors = bytes / sizeof *data / READS * READS;
  vector sums[READS] = {{0}};
  for (int64_t time = 0; time < times; time++) {
    for (size_t i = 0; i < vectors; i += READS) {
#pragma GCC unroll 8
      for (size_t k = 0; k < READS; k++) sums[k] += data[i + k];
    }
    __asm__ volatile("" ::: "memory"); /* else one pass serves all */
  }
  for (int k = 1; k < READS; k++) sums[0] += sums[k];
  sink = sums[0][0];
  return (double)(vectors * sizeof *data) * (double)times;
}
