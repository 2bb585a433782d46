// Of {1, 1, first}: sums grow by one in each multiply-add.
extern "C" __global__ void __launch_bounds__(512) kernel(const float *in, const int *steps, long long *cycles, float *out) {
  float factor = in[0], term = in[1], sums[8];
#pragma unroll
  for (int i = 0; i < 8; i++) sums[i] = in[2] + i;
  int count = steps[0];
  tcomp_count_begin();
  for (int step = 0; step < count; step++) {
#pragma unroll
    for (int i = 0; i < 128; i++) sums[i % 8] = fmaf(sums[i % 8], factor, term);
  }
  tcomp_count_end();
  float total = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) total += sums[i];
  out[blockIdx.x * blockDim.x + threadIdx.x] = total;
}
