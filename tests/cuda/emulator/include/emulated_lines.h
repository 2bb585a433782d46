// Which elements a copy of the copy engine brings: lines along the first axis of a tensor, one after the other.
// Source: PTX ISA, "Tensors", tiled mode and im2col mode.
#pragma once
#include <vector>

#include "cuda.h"
#include "emulation.h"

using emulated_lines = std::vector<std::vector<int64_t>>;  // of each, the index of its first element in the tensor

static void emulated_require_map(const CUtensorMap &map, const std::vector<int> &at, bool walks) {
  if (map.valid != EMULATED_TENSOR_MAP || map.rank != at.size() || (map.walks != 0) != walks)
    emulated_fail("a tile of another kind of tensor");
}

static emulated_lines emulated_lines_of_tile(const CUtensorMap &map, const std::vector<int> &at) {
  emulated_require_map(map, at, false);
  emulated_lines lines = {{at.begin(), at.end()}};
  for (unsigned axis = 1; axis < map.rank; axis++) {
    emulated_lines more;
    for (unsigned i = 0; i < map.box[axis]; i += map.steps[axis])
      for (auto line : lines) {
        line[axis] += i;
        more.push_back(line);
      }
    lines = more;
  }
  return lines;
}

// A line is a pixel. The filter's base goes from pixel to pixel of the bounding box, whose corners are counted from the
// first and the last pixel; the pixel that is read lies `offsets` further. Behind the last image there is nothing.
static emulated_lines emulated_lines_of_pixels(const CUtensorMap &map, const std::vector<int> &at,
                                               const std::vector<unsigned> &offsets) {
  emulated_require_map(map, at, true);
  unsigned axes = map.rank - 2;
  static const unsigned OFFSETS[] = {0, 1 << 16, 1 << 8, 1 << 5};
  if (offsets.size() != axes) emulated_fail("a copy of pixels with a wrong number of offsets");
  std::vector<int64_t> base(at.begin(), at.end()), end(axes);
  for (unsigned i = 0; i < axes; i++) {
    end[i] = (int64_t)map.extents[i + 1] + map.upper[i];
    if (base[i + 1] < map.lower[i] || base[i + 1] >= end[i]) emulated_fail("a filter that begins outside of the bounding box");
    if (offsets[i] >= OFFSETS[axes]) emulated_fail("an offset that an instruction cannot have");
  }
  emulated_lines lines;
  while (lines.size() < map.box[1]) {
    lines.push_back(base);
    for (unsigned i = 0; i < axes; i++) lines.back()[i + 1] += offsets[i];
    unsigned axis = 0;
    while (axis < axes && (base[axis + 1] += map.steps[axis + 1]) >= end[axis]) {
      base[axis + 1] = map.lower[axis];
      axis++;
    }
    if (axis == axes) base[axes + 1]++;
  }
  return lines;
}
