// The types of operands of `wgmma`, and how an element of each is read from shared memory.
#pragma once
#include <cstdint>
#include <cstring>
#include <string>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "emulated_float8.h"

template <typename T> float emulated_read(const void *place) {
  T read;
  memcpy(&read, place, sizeof read);
  return read;
}
static float emulated_read_tf32(const void *place) {
  uint32_t bits;
  memcpy(&bits, place, 4);
  bits &= ~0x1fffu;
  return emulated_read<float>(&bits);
}
// A type of operands, that of their sums, and whether matrices that are transposed may be multiplied.
struct emulated_type {
  const char *name, *sum;
  unsigned itemsize;
  bool transposes;
  float (*read)(const void *);
  bool is_int() const { return std::string(sum) == "s32"; }
};
static const emulated_type EMULATED_TYPES[] = {
    {"f16", "f32", 2, true, emulated_read<__half>},         {"bf16", "f32", 2, true, emulated_read<__nv_bfloat16>},
    {"tf32", "f32", 4, false, emulated_read_tf32},          {"s8", "s32", 1, false, emulated_read<int8_t>},
    {"e4m3", "f32", 1, false, emulated_read<emulated_e4m3>}, {"e5m2", "f32", 1, false, emulated_read<emulated_e5m2>},
};
