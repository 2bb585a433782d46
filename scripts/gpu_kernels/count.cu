// A launch that does next to nothing: counts itself.
extern "C" __global__ void __launch_bounds__(32) kernel(const unsigned *in, const int *steps, long long *cycles, unsigned *out) {
  if (threadIdx.x == 0) out[0] += in[0];
}
