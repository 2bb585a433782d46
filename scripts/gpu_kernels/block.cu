// A block that has nothing to do but begin and end: copies a tile of 16 KiB and stores it again.
extern "C" __global__ void __launch_bounds__(256) kernel(const uint4 *in, const int *steps, long long *cycles, uint4 *out) {
  extern __shared__ __align__(64) uint4 stages[];
  unsigned tiles = steps[1], tile = blockIdx.x % tiles;
  tcomp_count_begin();
#pragma unroll
  for (int i = 0; i < 4; i++) {
    unsigned at = i * 256 + threadIdx.x;
    tcomp_copy_async(stages + at, in + (size_t)tile * 1024 + at, true);
  }
  tcomp_commit_copies();
  tcomp_wait_copies<0>();
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 4; i++) {
    unsigned at = i * 256 + threadIdx.x;
    out[(size_t)tile * 1024 + at] = stages[at ^ 32];
  }
  tcomp_count_end();
}
