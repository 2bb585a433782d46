// Each word says where the next is: the latency of loads.
extern "C" __global__ void __launch_bounds__(32) kernel(const unsigned *in, const int *steps, long long *cycles, unsigned *out) {
  unsigned at = 0;
  int count = steps[0];
  tcomp_count_begin();
  for (int step = 0; step < count; step++) at = __ldcg(in + at);
  tcomp_count_end();
  out[blockIdx.x * blockDim.x + threadIdx.x] = at;
}
