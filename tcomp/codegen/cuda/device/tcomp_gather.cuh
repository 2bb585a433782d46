// Loads of what may not be there.
#pragma once

// The number at `from`; zero where not `inside`, and nothing is read there. As C, it would be a branch for each.
__device__ __forceinline__ float tcomp_load_inside(const float *from, bool inside) {
#ifdef __CUDA_ARCH__
  float value;
  asm("{\n.reg .pred inside;\nsetp.ne.u32 inside, %2, 0;\nmov.f32 %0, 0f00000000;\n"
      "@inside ld.global.nc.f32 %0, [%1];\n}"
      : "=f"(value)
      : "l"(from), "r"(static_cast<unsigned>(inside)));
  return value;
#else
  return inside ? *from : 0.0f;
#endif
}
