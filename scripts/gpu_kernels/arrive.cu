// A tile of the depth of products by plain instructions: loaded, stored to shared memory, waited for. Where the next
// one is takes a word of this, times `steps[2]`, which is zero.
extern "C" __global__ void __launch_bounds__(256) kernel(const unsigned *in, const int *steps, long long *cycles, unsigned *out) {
  __shared__ unsigned tile[2][256];
  unsigned count = steps[0], words = steps[1], zero = steps[2], at = threadIdx.x, sum = 0;
  tcomp_count_begin();
  for (unsigned step = 0; step < count; step++) {
    tile[step % 2][threadIdx.x] = __ldcg(in + at);
    __syncthreads();
    unsigned other = tile[step % 2][threadIdx.x ^ 32];
    sum += other;
    at += 8192 + other * zero;
    at -= at < words ? 0 : words;
  }
  tcomp_count_end();
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
