// The larger and the smaller of two numbers, NaN if either is: CUDA's own `max` and `min` drop it.
#pragma once

template <typename T> __device__ __forceinline__ T tcomp_maximum(T a, T b) { return a > b || a != a ? a : b; }
template <typename T> __device__ __forceinline__ T tcomp_minimum(T a, T b) { return a < b || a != a ? a : b; }

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
template <> __device__ __forceinline__ float tcomp_maximum<float>(float a, float b) {
  float c;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}
template <> __device__ __forceinline__ float tcomp_minimum<float>(float a, float b) {
  float c;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}
#endif
