// Half precision on a CPU: arithmetic in float, rounded after each operation, as the hardware does.
#pragma once
#include <immintrin.h>

#include "emulation.h"

struct __half {
  unsigned short bits;
  __half() = default;
  __half(float x) : bits(_cvtss_sh(x, 0)) {}
  __half(double x) : __half((float)x) {}
  __half(int x) : __half((float)x) {}
  __half(unsigned x) : __half((float)x) {}
  __half(int64_t x) : __half((float)x) {}
  operator float() const { return _cvtsh_ss(bits); }
  __half &operator+=(__half b) { return *this = __half((float)*this + (float)b); }
  __half &operator*=(__half b) { return *this = __half((float)*this * (float)b); }
};
using half = __half;
struct alignas(4) __half2 {
  __half x, y;
  __half2() = default;
  __half2(__half x, __half y) : x(x), y(y) {}
};
using half2 = __half2;
inline half2 make_half2(__half x, __half y) { return {x, y}; }
#define EMULATED_HALF(OP)                                                                                 \
  inline __half operator OP(__half a, __half b) { return __half((float)a OP (float)b); }
EMULATED_HALF(+)
EMULATED_HALF(-)
EMULATED_HALF(*)
EMULATED_HALF(/)
inline __half operator-(__half a) { return __half(-(float)a); }
inline bool operator<(__half a, __half b) { return (float)a < (float)b; }
inline bool operator>(__half a, __half b) { return (float)a > (float)b; }
inline bool __hgt(__half a, __half b) { return a > b; }
inline bool __hlt(__half a, __half b) { return a < b; }
inline float __half2float(__half x) { return x; }
inline __half __ushort_as_half(unsigned short x) { __half y; y.bits = x; return y; }
inline __half __float2half(float x) { return __half(x); }
inline __half __float2half_rn(float x) { return __half(x); }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline __half hexp(__half x) { return __half(expf(x)); }
inline __half hlog(__half x) { return __half(logf(x)); }
inline __half hsqrt(__half x) { return __half(sqrtf(x)); }
inline __half hrsqrt(__half x) { return __half(1.0f / sqrtf(x)); }
inline __half htanh(__half x) { return __half(tanhf(x)); }
inline __half hfloor(__half x) { return __half(floorf(x)); }
inline __half hceil(__half x) { return __half(ceilf(x)); }
inline __half __habs(__half x) { return __half(fabsf(x)); }
inline __half __hfma(__half a, __half b, __half c) { return __half(fmaf(a, b, c)); }
