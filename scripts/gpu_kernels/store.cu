// Stores chunks of 16 bytes, `steps[2]` chunks apart, again and again to the same places of the block.
extern "C" __global__ void __launch_bounds__(512) kernel(const unsigned *in, const int *steps, long long *cycles, uint4 *out) {
  unsigned count = steps[0], apart = steps[2], first = in[0];
  uint4 *own = out + (size_t)blockIdx.x * 4096 * apart + threadIdx.x * apart;
  uint4 value = make_uint4(first, first, first, first);
  tcomp_count_begin();
  for (unsigned step = 0; step < count; step++) {
    value.x = first + step;
#pragma unroll
    for (int i = 0; i < 8; i++) own[i * 512 * apart] = value;
    __syncthreads();
  }
  tcomp_count_end();
}
