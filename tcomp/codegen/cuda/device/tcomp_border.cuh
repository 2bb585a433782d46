// What lies around an image that is padded with another number than zero.
#pragma once

struct alignas(16) tcomp_chunk { unsigned words[4]; };
template <unsigned WORD> __device__ const tcomp_chunk tcomp_border_chunk = {{WORD, WORD, WORD, WORD}};

// The address of a chunk of the image, or of one of the border where it is not `inside`.
template <unsigned WORD> __device__ __forceinline__ const void *tcomp_or_border(const void *chunk, bool inside) {
  return inside ? chunk : &tcomp_border_chunk<WORD>;
}
