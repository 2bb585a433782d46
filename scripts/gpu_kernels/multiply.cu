// Of a word of ones of the type $DTYPE: each sum grows by the depth of an instruction.
extern "C" __global__ void __launch_bounds__(256) kernel(const unsigned *in, const int *steps, long long *cycles, $SUM *out) {
  unsigned a[4] = {in[0], in[0], in[0], in[0]}, b[2] = {in[0], in[0]};
  $SUM sums[8][4] = {};
  int count = steps[0];
  tcomp_count_begin();
  for (int step = 0; step < count; step++) {
#pragma unroll
    for (int i = 0; i < 8; i++) tcomp_multiply_$DTYPE(sums[i], a, b);
  }
  tcomp_count_end();
  $SUM total = 0;
#pragma unroll
  for (int i = 0; i < 32; i++) total += sums[i / 4][i % 4];
  out[blockIdx.x * blockDim.x + threadIdx.x] = total;
}
