// Rounding of numbers to bfloat16.
#pragma once
#include <cuda_bf16.h>

// The bits of the nearest number, of two the even one; NaN stays NaN. As half of a pair, of which nvcc makes the
// instruction (F2FP) that float16 takes; of one number it makes another.
__device__ __forceinline__ unsigned short tcomp_bfloat16_bits(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(0.0f), "f"(x));
  return static_cast<unsigned short>(pair);
#else
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
#endif
}
