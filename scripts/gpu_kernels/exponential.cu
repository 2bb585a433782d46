// Of {0}: adds 2^0, takes it from the exponent again, and so on.
extern "C" __global__ void __launch_bounds__(512) kernel(const float *in, const int *steps, long long *cycles, float *out) {
  float exponents[8], sums[8];
#pragma unroll
  for (int i = 0; i < 8; i++) exponents[i] = sums[i] = in[0];
  int count = steps[0];
  tcomp_count_begin();
  for (int step = 0; step < count; step++) {
#pragma unroll
    for (int i = 0; i < 32; i++) {
      float power = tcomp_exp2(exponents[i % 8]);
      sums[i % 8] += power;
      exponents[i % 8] = power - 1.0f;
    }
  }
  tcomp_count_end();
  float total = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) total += sums[i];
  out[blockIdx.x * blockDim.x + threadIdx.x] = total;
}
