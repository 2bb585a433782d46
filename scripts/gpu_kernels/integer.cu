// Of {word}: words are shifted, and exclusive or of them and that one is taken, which are two instructions.
extern "C" __global__ void __launch_bounds__(512) kernel(const unsigned *in, const int *steps, long long *cycles, unsigned *out) {
  unsigned word = in[0], values[8];
#pragma unroll
  for (int i = 0; i < 8; i++) values[i] = word + i;
  int count = steps[0];
  tcomp_count_begin();
  for (int step = 0; step < count; step++) {
#pragma unroll
    for (int i = 0; i < 64; i++) values[i % 8] = values[i % 8] >> 1 ^ word;
  }
  tcomp_count_end();
  unsigned total = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) total += values[i] * (2 * i + 1);
  out[blockIdx.x * blockDim.x + threadIdx.x] = total;
}
