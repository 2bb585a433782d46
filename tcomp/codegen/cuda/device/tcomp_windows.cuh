// Copies of windows of a convolution by the copy engine of GPUs of architecture sm_90a, in its im2col mode: one thread asks
// for all. Places in shared memory are addresses of its own window, as numbers. Source: PTX ISA, `cp.async.bulk.tensor`.
#pragma once

// As many channels from `channel` on, and as many pixels, as the map at `map` says, of images whose pixels have one to
// three axes: the first window begins at pixel (x, y, z) of an image, and of all windows the tap is copied that lies
// (dx, dy, dz) further. Its bytes arrive at `barrier`.
__device__ __forceinline__ void tcomp_copy_pixels(unsigned shared, unsigned long long map, unsigned barrier, int channel,
                                                  int x, int image, int dx) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, "
               "%5}], [%2], {%6};" ::"r"(shared),
               "l"(map), "r"(barrier), "r"(channel), "r"(x), "r"(image), "h"(static_cast<unsigned short>(dx))
               : "memory");
}
__device__ __forceinline__ void tcomp_copy_pixels(unsigned shared, unsigned long long map, unsigned barrier, int channel,
                                                  int x, int y, int image, int dx, int dy) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
               "%6}], [%2], {%7, %8};" ::"r"(shared),
               "l"(map), "r"(barrier), "r"(channel), "r"(x), "r"(y), "r"(image), "h"(static_cast<unsigned short>(dx)),
               "h"(static_cast<unsigned short>(dy))
               : "memory");
}
__device__ __forceinline__ void tcomp_copy_pixels(unsigned shared, unsigned long long map, unsigned barrier, int channel,
                                                  int x, int y, int z, int image, int dx, int dy, int dz) {
  asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
               "%6, %7}], [%2], {%8, %9, %10};" ::"r"(shared),
               "l"(map), "r"(barrier), "r"(channel), "r"(x), "r"(y), "r"(z), "r"(image),
               "h"(static_cast<unsigned short>(dx)), "h"(static_cast<unsigned short>(dy)),
               "h"(static_cast<unsigned short>(dz))
               : "memory");
}
