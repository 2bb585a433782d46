// As barrier.cu, by a barrier in shared memory at which a thread of each warp arrives.
#include "tcomp_wgmma.cuh"
extern "C" __global__ void __launch_bounds__(256) kernel(const unsigned *in, const int *steps, long long *cycles, unsigned *out) {
  extern __shared__ __align__(64) char memory[];
  unsigned barrier = tcomp_shared_begin(memory), passed = 0;
  if (threadIdx.x == 0) {
    tcomp_barrier_init(barrier, 8);
    tcomp_barriers_are_ready();
  }
  unsigned count = steps[0];
  tcomp_count_begin();
  for (unsigned step = 0; step < count; step++) {
    if (threadIdx.x % 32 == 0) tcomp_barrier_arrive(barrier);
    tcomp_barrier_wait(barrier, step % 2);
    __syncwarp();
    passed++;
  }
  tcomp_count_end();
  out[blockIdx.x * blockDim.x + threadIdx.x] = passed;
}
