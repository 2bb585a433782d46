/* What `tcomp bench --static` gives to the program beside the model: inputs, and what must come out. */
#ifndef TCOMP_BENCH_CASE_H
#define TCOMP_BENCH_CASE_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
  const char *const *inputs;   /* data of each input, aligned to 64 bytes */
  const char *const *expected; /* data of each output, in its element type */
  double relative, absolute;   /* |found - expected| <= absolute + relative * max|expected| in each output */
  int32_t threads;             /* unless told otherwise */
} tcomp_bench_case;

extern const tcomp_bench_case tcomp_case;

#endif
