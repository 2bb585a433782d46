// Weights of 4 and 8 bits as float32 numbers, less a whole zero point of at most 255.
#pragma once

__device__ __forceinline__ unsigned tcomp_load_word(const void *at) { return *static_cast<const unsigned *>(at); }

// 2^23 + n of a number below 2^23: it is the last bits.
__device__ __forceinline__ float tcomp_biased(unsigned n) { return __int_as_float((int)(0x4b000000u | n)); }

// The eight halves of bytes of a word, the lowest first. Four of them stay where they are, 16^i times as large as they
// should be, and the multiply-add that takes the zero point off divides them by that: two instructions for a number,
// and one more for four. It is exact.
__device__ __forceinline__ void tcomp_unpack_4(float *numbers, unsigned word, float zero) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float unit = 1.0f / (float)(1 << 4 * i);
      const unsigned bits = word >> 16 * half & 15u << 4 * i;
      numbers[4 * half + i] = fmaf(tcomp_biased(bits), unit, -(8388608.0f * unit + zero));
    }
  }
}

// The four bytes of a word, the lowest first.
__device__ __forceinline__ void tcomp_unpack_8(float *numbers, unsigned word, float zero) {
#pragma unroll
  for (int i = 0; i < 4; i++) numbers[i] = tcomp_biased(word >> 8 * i & 255u) - (8388608.0f + zero);
}
