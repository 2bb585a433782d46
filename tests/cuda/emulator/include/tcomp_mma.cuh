// What the functions of the header of this name do on a GPU: see there, and the PTX ISA for the fragments.
#pragma once
#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "emulated_float8.h"

inline int tcomp_anew(int value) { return value; }
template <int COUNT> void tcomp_put_words(void *to, const void *from) {
  if ((uintptr_t)to % (4 * COUNT) != 0) emulated_fail("words that are not aligned to their size");
  memcpy(to, from, 4 * COUNT);
}

// What each thread of a warp gives is seen by all others.
template <typename T> const T *emulated_share(const T &mine) {
  static T given[EMULATED_CLUSTER * 1024];
  given[emulated_current] = mine;
  __syncwarp();
  return given + emulated_current / 32 * 32;
}

inline void emulated_load_matrices(unsigned *registers, const void *row, bool transposed) {
  if ((uintptr_t)row % 16 != 0) emulated_fail("a row of a matrix is not aligned to 16 bytes");
  const void *const *rows = emulated_share(row);
  unsigned lane = emulated_current % 32;
  for (int matrix = 0; matrix < 4; matrix++) {
    uint16_t pair[2];
    for (int i = 0; i < 2; i++) {
      unsigned line = lane / 4, column = lane % 4 * 2 + i;
      pair[i] = transposed ? ((const uint16_t *)rows[matrix * 8 + column])[line]
                           : ((const uint16_t *)rows[matrix * 8 + line])[column];
    }
    memcpy(&registers[matrix], pair, 4);
  }
  __syncwarp();
}
inline void tcomp_load_matrices(unsigned *registers, const void *row) { emulated_load_matrices(registers, row, false); }
inline void tcomp_load_matrices_transposed(unsigned *registers, const void *row) {
  emulated_load_matrices(registers, row, true);
}

struct emulated_tf32 { unsigned bits; };
inline float emulated_number(__half x) { return x; }
inline float emulated_number(__nv_bfloat16 x) { return x; }
inline int emulated_number(signed char x) { return x; }
inline float emulated_number(emulated_e4m3 x) { return x; }
inline float emulated_number(emulated_e5m2 x) { return x; }
inline float emulated_number(emulated_tf32 x) { return __int_as_float(x.bits & ~0x1fffu); }

inline void tcomp_round_tf32(unsigned *registers) {
  for (int i = 0; i < 4; i++)
    if (std::isfinite(__int_as_float(registers[i]))) registers[i] += 0x1000u;
}

struct emulated_factors { unsigned a[4], b[2]; };

// `T` are elements of a and b, as many as fit into a register: element (row, k) of a is in register
// row / 8 + 2 * (k / half) of thread row % 8 * 4 + k % half / count.
template <typename T, typename SUM> void emulated_multiply(SUM *sums, const unsigned *a, const unsigned *b) {
  const unsigned count = 4 / sizeof(T), half = 4 * count;
  const emulated_factors *given = emulated_share<emulated_factors>({{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
  unsigned lane = emulated_current % 32;
  auto element = [&](const unsigned *words, unsigned at) {
    T values[count];
    memcpy(values, words, 4);
    return emulated_number(values[at]);
  };
  for (unsigned i = 0; i < 4; i++) {
    unsigned row = lane / 4, column = lane % 4 * 2 + i % 2;
    SUM sum = sums[i];
    for (unsigned k = 0; k < 2 * half; k++) {
      unsigned among = k % half / count;
      sum += element(&given[row * 4 + among].a[i / 2 + k / half * 2], k % count) *
             element(&given[column * 4 + among].b[k / half], k % count);
    }
    sums[i] = sum;
  }
  __syncwarp();
}
inline void tcomp_multiply_float16(float *s, const unsigned *a, const unsigned *b) { emulated_multiply<__half>(s, a, b); }
inline void tcomp_multiply_bfloat16(float *s, const unsigned *a, const unsigned *b) {
  emulated_multiply<__nv_bfloat16>(s, a, b);
}
inline void tcomp_multiply_tf32(float *s, const unsigned *a, const unsigned *b) { emulated_multiply<emulated_tf32>(s, a, b); }
inline void tcomp_multiply_int8(int *s, const unsigned *a, const unsigned *b) { emulated_multiply<signed char>(s, a, b); }
inline void tcomp_multiply_float8_e4m3fn(float *s, const unsigned *a, const unsigned *b) {
  emulated_multiply<emulated_e4m3>(s, a, b);
}
inline void tcomp_multiply_float8_e5m2(float *s, const unsigned *a, const unsigned *b) {
  emulated_multiply<emulated_e5m2>(s, a, b);
}

template <typename T> unsigned emulated_pack(float a, float b) {
  T pair[2] = {T(a), T(b)};
  unsigned word;
  memcpy(&word, pair, 4);
  return word;
}
inline unsigned tcomp_pack_float16(float a, float b) { return emulated_pack<__half>(a, b); }
inline unsigned tcomp_pack_bfloat16(float a, float b) { return emulated_pack<__nv_bfloat16>(a, b); }
inline float tcomp_exp2(float x) { return x < -126 ? 0 : exp2f(x); }

// A copy happens at some time between its beginning and the wait for it: what is overwritten is lost at once (the
// bytes are those of a NaN), and what is copied appears as late as it may.
struct emulated_copy { void *shared; const void *global; bool inside; };
struct emulated_copies {
  std::vector<std::vector<emulated_copy>> groups;
  std::vector<emulated_copy> open;
  unsigned cluster;
};
inline emulated_copies &emulated_own_copies() {
  static emulated_copies of[EMULATED_CLUSTER * 1024];
  emulated_copies &own = of[emulated_current];
  if (own.cluster != emulated_clusters) own = {{}, {}, emulated_clusters};
  return own;
}

inline void tcomp_copy_async(void *shared, const void *global, bool inside) {
  if ((uintptr_t)shared % 16 != 0 || (inside && (uintptr_t)global % 16 != 0))
    emulated_fail("an asynchronous copy is not aligned to 16 bytes");
  memset(shared, 0xff, 16);
  emulated_own_copies().open.push_back({shared, global, inside});
}
inline void tcomp_copy_async(void *shared, const void *global, bool inside, bool live) {
  if (live) tcomp_copy_async(shared, global, inside);
}
inline void tcomp_store_chunk(void *to, const void *from) {
  if ((uintptr_t)to % 16 != 0) emulated_fail("a store of 16 bytes is not aligned");
  memcpy(to, from, 16);
}
inline void tcomp_commit_copies() {
  emulated_copies &own = emulated_own_copies();
  own.groups.push_back(std::move(own.open));
  own.open.clear();
}
template <int PENDING> void tcomp_wait_copies() {
  auto &groups = emulated_own_copies().groups;
  while (groups.size() > PENDING) {
    for (const emulated_copy &copy : groups.front())
      if (copy.inside) memcpy(copy.shared, copy.global, 16);
      else memset(copy.shared, 0, 16);
    groups.erase(groups.begin());
  }
}
