// Products by groups of warps: they read shared memory, and their sums appear, when they are waited for.
#pragma once
#include <memory>

#include "emulated_copies.h"
#include "emulated_types.h"

// ---- warps ----

// All threads of the warp are at the same instruction.
static void emulated_converge(const void *instruction) {
  static const void *at[EMULATED_CLUSTER * 1024];
  at[emulated_current] = instruction;
  __syncwarp();
  for (unsigned lane = 0; lane < 32; lane++)
    if (at[emulated_current / 32 * 32 + lane] != instruction) emulated_fail("an aligned instruction is not one of all threads of a warp");
  __syncwarp();
  at[emulated_current] = nullptr;
}

struct emulated_product {
  const void *instruction;
  uint64_t a, b;
  unsigned columns, depth;
  const emulated_type *type;
  bool accumulate, transpose_a, transpose_b;
  std::vector<uint32_t *> registers;
  std::vector<uint32_t> left;                   // of a, where it is in registers: four of each thread of the warp
  std::shared_ptr<std::vector<uint32_t>> sums;  // what the registers will hold
};
struct emulated_products {
  unsigned cluster;
  bool fenced;
  std::vector<emulated_product> open;
  std::vector<std::vector<emulated_product>> groups;
};
static emulated_products &emulated_own_products() {
  static emulated_products of[EMULATED_CLUSTER * 1024];
  emulated_products &own = of[emulated_current];
  if (own.cluster != emulated_clusters) own = {emulated_clusters, false, {}, {}};
  return own;
}

// Element (x, k) of a matrix in shared memory: "Shared Memory Matrix Layout" and "Matrix Descriptor Format". `x` counts
// rows of a or columns of b, and lies along memory where `transposed`.
static float emulated_element(const emulated_product &product, uint64_t matrix, bool transposed, unsigned x, unsigned k) {
  static const unsigned SPANS[] = {0, 128, 64, 32};
  unsigned begin = (matrix & 0x3fff) << 4, leading = (matrix >> 16 & 0x3fff) << 4, stride = (matrix >> 32 & 0x3fff) << 4;
  unsigned span = SPANS[matrix >> 62], size = product.type->itemsize, chunk = 16 / size;
  if (matrix >> 49 & 7) emulated_fail("a matrix with a base offset");
  unsigned address;
  if (!transposed && span == 0) address = begin + x / 8 * stride + x % 8 * 16 + k / chunk * leading + k % chunk * size;
  else if (!transposed) address = begin + x / 8 * stride + x % 8 * span + k * size;
  else if (span == 0) address = begin + x / chunk * stride + k % 8 * 16 + k / 8 * leading + x % chunk * size;
  else
    address = begin + k / 8 * stride + k % 8 * span + x * size / span * leading + x * size % span;
  if (span) address = emulated_swizzle(address, span);
  const unsigned char *place = emulated_at(address & 0x3ffff, size, emulated_rank());
  return product.type->read(place);
}

// Element (row, k) of the 16 rows of a that a warp has in registers: "Register Fragments for wgmma.mma_async.m64nNk16".
static float emulated_element_of_warp(const emulated_product &product, unsigned row, unsigned k) {
  unsigned lane = row % 8 * 4 + k % 8 / 2;
  return product.type->read((const uint16_t *)&product.left[lane * 4 + row / 8 + k / 8 * 2] + k % 2);
}

// The part of a product that the registers of this thread hold. What its warp reads is read once.
static void emulated_multiply_group(const emulated_product &product, unsigned number) {
  static std::vector<float> a(16 * 32), b(256 * 32);
  static unsigned read_by = ~0u, read_number, read_cluster;
  unsigned warp = emulated_current / 32, lane = emulated_current % 32, depth = product.depth;
  if (read_by != warp || read_number != number || read_cluster != emulated_clusters) {
    for (unsigned k = 0; k < depth; k++) {
      for (unsigned row = 0; row < 16; row++)
        a[row * depth + k] = product.left.empty() ? emulated_element(product, product.a, product.transpose_a, warp % 4 * 16 + row, k)
                                                  : emulated_element_of_warp(product, row, k);
      for (unsigned column = 0; column < product.columns; column++)
        b[column * depth + k] = emulated_element(product, product.b, product.transpose_b, column, k);
    }
    read_by = warp;
    read_number = number;
    read_cluster = emulated_clusters;
  }
  for (unsigned i = 0; i < product.columns / 2; i++) {
    const float *row = &a[(lane / 4 + i / 2 % 2 * 8) * depth], *column = &b[(i / 4 * 8 + lane % 4 * 2 + i % 2) * depth];
    uint32_t &place = (*product.sums)[i];
    if (product.type->is_int()) {
      int sum = product.accumulate ? (int)place : 0;
      for (unsigned k = 0; k < depth; k++) sum += (int)row[k] * (int)column[k];
      place = (uint32_t)sum;
    } else {
      float sum = 0;
      if (product.accumulate) memcpy(&sum, &place, 4);
      for (unsigned k = 0; k < depth; k++) sum += row[k] * column[k];
      memcpy(&place, &sum, 4);
    }
  }
}

// `left` are this thread's registers of a, if it is there.
static void emulated_begin_product(emulated_product product, const std::vector<uint32_t> &left) {
  static uint64_t given[EMULATED_CLUSTER * 1024][2];
  static uint32_t lefts[EMULATED_CLUSTER * 1024][4];
  emulated_products &own = emulated_own_products();
  if (!own.fenced) emulated_fail("a product without a fence behind other uses of its registers");
  emulated_converge(product.instruction);
  uint64_t *mine = given[emulated_current], *first = given[emulated_current / 32 * 32];
  mine[0] = product.a;
  mine[1] = product.b;
  for (size_t i = 0; i < left.size(); i++) lefts[emulated_current][i] = left[i];
  __syncwarp();
  if (left.empty()) emulated_require_chunks((product.a & 0x3fff) << 4);
  else product.left.assign(lefts[emulated_current / 32 * 32], lefts[emulated_current / 32 * 32 + 32]);
  if (first[0] != mine[0] || first[1] != mine[1]) emulated_fail("the threads of a warp multiply different matrices");
  __syncwarp();
  own.groups.push_back(own.open);
  for (auto &group : own.groups)
    for (auto &earlier : group)
      if (earlier.registers == product.registers) product.sums = earlier.sums;
  own.groups.pop_back();
  if (!product.sums) {
    product.sums = std::make_shared<std::vector<uint32_t>>();
    for (uint32_t *place : product.registers) product.sums->push_back(*place);
  }
  for (uint32_t *place : product.registers) *place = ~0u;
  own.open.push_back(std::move(product));
}

static void emulated_wait_for_products(unsigned pending) {
  emulated_products &own = emulated_own_products();
  static unsigned numbers[EMULATED_CLUSTER * 1024];
  while (own.groups.size() > pending) {
    for (const emulated_product &product : own.groups.front()) {
      emulated_multiply_group(product, ++numbers[emulated_current]);
      for (size_t i = 0; i < product.registers.size(); i++) *product.registers[i] = (*product.sums)[i];
    }
    own.groups.erase(own.groups.begin());
    // Registers of products that are still under way hold nothing.
    for (auto &group : own.groups)
      for (auto &product : group)
        for (uint32_t *place : product.registers) *place = ~0u;
  }
  own.fenced = false;
}
