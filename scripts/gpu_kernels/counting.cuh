// Before each kernel here: a block counts the cycles of its own loop, of `steps[0]` steps, between two barriers, and
// leaves in `out` what is known beforehand if it did all that it was to do.
#include "tcomp_mma.cuh"
#ifndef __CUDACC_RTC__
#include <cuda.h>
#endif

#define tcomp_count_begin() \
  __syncthreads();          \
  long long begin = clock64()
#define tcomp_count_end() \
  __syncthreads();        \
  if (threadIdx.x == 0) cycles[blockIdx.x] = clock64() - begin
