// Weights of 4 and 8 bits as float32 numbers, less a zero point: a whole one of at most 255, or that of float8.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

__device__ __forceinline__ unsigned tcomp_load_word(const void *at) { return *static_cast<const unsigned *>(at); }

// 2^23 + n, where n is what `mask`, of at most 23 bits, leaves of `word`: the last bits of a float32 number. That is
// one instruction, which nvcc does not find.
__device__ __forceinline__ float tcomp_biased(unsigned word, unsigned mask) {
#ifdef __CUDA_ARCH__
  unsigned bits;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(bits) : "r"(word), "r"(mask), "r"(0x4b000000u));
  return __int_as_float((int)bits);
#else
  return __int_as_float((int)((word & mask) | 0x4b000000u));
#endif
}

// The eight halves of bytes of a word, the lowest first. Four of them stay where they are, 16^i times as large as they
// should be, and the multiply-add that takes the zero point off divides them by that: two instructions for a number,
// and one more for four. It is exact.
__device__ __forceinline__ void tcomp_unpack_4(float *numbers, unsigned word, float zero) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float unit = 1.0f / (float)(1 << 4 * i);
      const float biased = tcomp_biased(word >> 16 * half, 15u << 4 * i);
      numbers[4 * half + i] = fmaf(biased, unit, -(8388608.0f * unit + zero));
    }
  }
}

// The four bytes of a word, the lowest first.
__device__ __forceinline__ void tcomp_unpack_8(float *numbers, unsigned word, float zero) {
#pragma unroll
  for (int i = 0; i < 4; i++) numbers[i] = tcomp_biased(word >> 8 * i, 255u) - (8388608.0f + zero);
}

// The four floats of a word. Sign, exponent and mantissa are put where float32 has them, which is 2^-120 times the
// number, subnormal ones included; 480 are the bits of NaN.
__device__ __forceinline__ void tcomp_unpack_float8_e4m3fn(float *numbers, unsigned word, float zero) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int bits = ((int)(word << (24 - 8 * i)) >> 4) & (int)0x87f00000u;
    const float number = __int_as_float(bits) * 1.329227995784916e36f;
    numbers[i] = (fabsf(number) > 448.0f ? __int_as_float(0x7fc00000) : number) - zero;
  }
}

// Float16 with less mantissa.
__device__ __forceinline__ void tcomp_unpack_float8_e5m2(float *numbers, unsigned word, float zero) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const unsigned short bits = (unsigned short)((word >> 8 * i & 255u) << 8);
    numbers[i] = __half2float(__ushort_as_half(bits)) - zero;
  }
}

// Stores eight numbers times their scale in 16 bits each, at a multiple of 16 bytes.
__device__ __forceinline__ void tcomp_store_float16(void *to, const float *numbers, float scale) {
  alignas(16) __half values[8];
#pragma unroll
  for (int i = 0; i < 8; i++) values[i] = __float2half_rn(numbers[i] * scale);
  *static_cast<uint4 *>(to) = *reinterpret_cast<const uint4 *>(values);
}

__device__ __forceinline__ void tcomp_store_bfloat16(void *to, const float *numbers, float scale) {
  alignas(16) __nv_bfloat16 values[8];
#pragma unroll
  for (int i = 0; i < 8; i++) values[i] = __float2bfloat16_rn(numbers[i] * scale);
  *static_cast<uint4 *>(to) = *reinterpret_cast<const uint4 *>(values);
}
