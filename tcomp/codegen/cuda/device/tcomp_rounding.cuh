// Rounding of numbers to bfloat16.
#pragma once
#include <cuda_bf16.h>

// The bits of the nearest number, of two the even one; NaN stays NaN. Rounding two at once, one of them zero, is four
// times as fast as the instruction for one.
__device__ __forceinline__ unsigned short tcomp_bfloat16_bits(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(0.0f), "f"(x));
  return static_cast<unsigned short>(pair);
#else
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
#endif
}
