/* What a model without a system under it takes from its runtime, and gives to it. */
#ifndef TCOMP_FREESTANDING_H
#define TCOMP_FREESTANDING_H

#include <stddef.h>
#include <stdint.h>

void *memcpy(void *destination, const void *source, size_t bytes);

/* Where the tensors of one run are. */
typedef struct {
  char *arena;
  const char *weights;
  void *const *inputs;
  void *const *outputs;
} tcomp_frame;

/* Memory that kernels take and give back during the next run. */
void tcomp_begin(char *memory, size_t bytes);

#endif
