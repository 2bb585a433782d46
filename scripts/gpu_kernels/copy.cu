// As read.cu, by copies to shared memory of 16 bytes a thread: three tiles of 16 KiB are on their way. Of each thread's
// chunks one is added.
extern "C" __global__ void __launch_bounds__(256) kernel(const uint4 *in, const int *steps, long long *cycles, unsigned *out) {
  extern __shared__ __align__(64) uint4 stages[];
  unsigned count = steps[0], tiles = steps[1], tile = blockIdx.x * (unsigned)steps[2] % tiles, sum = 0;
  tcomp_count_begin();
  for (unsigned step = 0; step < count + 3; step++) {
    if (step < count) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        unsigned at = i * 256 + threadIdx.x;
        tcomp_copy_async(stages + step % 4 * 1024 + at, in + (size_t)tile * 1024 + at, true);
      }
      tile = tile + 1 == tiles ? 0 : tile + 1;
    }
    tcomp_commit_copies();
    if (step < 3) continue;
    tcomp_wait_copies<3>();
    __syncthreads();
    uint4 one = stages[(step - 3) % 4 * 1024 + step % 4 * 256 + (threadIdx.x ^ 32)];
    sum += one.x + one.y + one.z + one.w;
    __syncthreads();
  }
  tcomp_count_end();
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
