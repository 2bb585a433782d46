// As copy.cu, by the copy engine: $STAGES tiles of 16 KiB on their way. A word of each tile is added.
#include "tcomp_wgmma.cuh"
extern "C" __global__ void __launch_bounds__(32) kernel(const uint4 *in, const int *steps, long long *cycles, unsigned *out, const __grid_constant__ CUtensorMap map) {
  extern __shared__ __align__(64) char memory[];
  unsigned barriers = tcomp_shared_begin(memory), first = barriers + 1024;
  const unsigned *words = (const unsigned *)(memory + (first - (unsigned)__cvta_generic_to_shared(memory)));
  unsigned count = steps[0], tiles = steps[1], tile = blockIdx.x * (unsigned)steps[2] % tiles, sum = 0;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < $STAGES; stage++) tcomp_barrier_init(barriers + 8 * stage, 1);
    tcomp_barriers_are_ready();
  }
  tcomp_count_begin();
  if (threadIdx.x == 0) {
    for (unsigned step = 0; step < count + $STAGES; step++) {
      unsigned stage = step % $STAGES;
      if (step >= $STAGES) {
        tcomp_barrier_wait(barriers + 8 * stage, (step / $STAGES - 1) % 2);
        sum += words[stage * 4096 + step % 4096];
      }
      if (step >= count) continue;
      tcomp_barrier_expect(barriers + 8 * stage, 16384);
      tcomp_copy_tile(first + stage * 16384, (unsigned long long)&map, barriers + 8 * stage, 0, tile * 128, 0);
      tile = tile + 1 == tiles ? 0 : tile + 1;
    }
  }
  tcomp_count_end();
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
