// Two groups of four warps multiply ones [64, depth] by numbers of the type $DTYPE [$COLUMNS, depth], 128 bytes of depth a
// step. `in` is what a word of ones is, then the lines of the right operand.
#include "tcomp_wgmma.cuh"
extern "C" __global__ void __launch_bounds__(256) kernel(const unsigned *in, const int *steps, long long *cycles, $SUM *out) {
  extern __shared__ __align__(64) char memory[];
  unsigned left = tcomp_shared_begin(memory), right = left + 8192;
  unsigned *words = (unsigned *)(memory + (left - (unsigned)__cvta_generic_to_shared(memory)));
  for (int i = threadIdx.x; i < 2048; i += 256) words[i] = in[0];
  for (int i = threadIdx.x; i < $COLUMNS * 32; i += 256) words[2048 + i] = in[1 + i];
  tcomp_gathers_are_seen();
  unsigned ones[4] = {in[0], in[0], in[0], in[0]};
  $SUM sums[$COUNT];
#pragma unroll
  for (int i = 0; i < $COUNT; i++) sums[i] = 0;
  int count = steps[0];
  tcomp_count_begin();
  for (int step = 0; step < count; step++) {
    tcomp_products_begin();
#pragma unroll
    for (int k = 0; k < 4; k++) {
      unsigned long long matrix = tcomp_matrix(right + k * 32, 0, 1024);
      $PRODUCT;
    }
    tcomp_products_commit();
    tcomp_products_wait<1>();
  }
  tcomp_products_wait<0>();
  tcomp_count_end();
#pragma unroll
  for (int i = 0; i < $COUNT; i++) out[(blockIdx.x * 256 + threadIdx.x) * $COUNT + i] = sums[i];
}
