// Of the driver's interface, what a kernel needs: the tensor that copies of tiles are cut from. On a GPU it is opaque.
#pragma once
#include <cstdint>

struct alignas(128) CUtensorMap {
  uint32_t valid;  // EMULATED_TENSOR_MAP
  uint16_t itemsize;
  uint8_t rank, swizzle;  // bytes of a line within which chunks of 16 bytes are permuted; 0: none
  char *address;
  uint64_t strides[4];  // in bytes; that of the first axis is an element
  uint32_t extents[5];
  uint16_t box[5], steps[5];
  uint32_t rounds;  // float32 numbers to tf32
  uint32_t walks;  // over pixels of images, im2col mode: the box is channels and pixels
  int16_t lower[3], upper[3];
};
static_assert(sizeof(CUtensorMap) == 128, "the size of the driver's");
enum : uint32_t { EMULATED_TENSOR_MAP = 0x7e4503a9 };
