// The floats of 8 bits that tensor cores multiply, by their bits; no number of theirs is rounded in float32.
#pragma once
#include "emulation.h"

template <int MANTISSA, int BIAS, bool INFINITE> struct emulated_float8 {
  unsigned char bits;
  operator float() const {
    int exponent = bits >> MANTISSA & ((1 << (7 - MANTISSA)) - 1), fraction = bits & ((1 << MANTISSA) - 1);
    bool is_last = exponent == (1 << (7 - MANTISSA)) - 1;
    float size = exponent == 0 ? ldexpf(fraction, 1 - BIAS - MANTISSA)
                               : ldexpf(fraction + (1 << MANTISSA), exponent - BIAS - MANTISSA);
    if (is_last && (INFINITE || fraction == (1 << MANTISSA) - 1)) size = INFINITE && fraction == 0 ? INFINITY : NAN;
    return bits & 0x80 ? -size : size;
  }
};
using emulated_e4m3 = emulated_float8<3, 7, false>;
using emulated_e5m2 = emulated_float8<2, 15, true>;
