// What CUDA C means on a CPU: each thread of a block is a fibre that runs until it waits for others. Threads
// run in order, so that a missing barrier shows: the first thread reads what the last has not written yet.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0

struct emulated_dim { unsigned x, y, z; };
extern "C" {
[[gnu::used]] inline emulated_dim emulated_block_index, emulated_thread_index, emulated_block_size, emulated_grid_size;
}
#define threadIdx emulated_thread_index
#define blockIdx emulated_block_index
#define blockDim emulated_block_size
#define gridDim emulated_grid_size

// ---- fibres ----

enum emulated_state { RUNS, POLLS, WAITS_FOR_WARP, WAITS_FOR_BLOCK, WAITS_FOR_CLUSTER, DONE };
struct emulated_fiber { void *stack_pointer; char *stack; emulated_state state; };
inline std::vector<emulated_fiber> emulated_fibers;
inline void *emulated_scheduler;
inline unsigned emulated_current;
inline void (*emulated_function)(void **);
inline void **emulated_arguments;
inline const size_t EMULATED_STACK = 1 << 17;
inline unsigned emulated_clusters;  // that have begun; a block of its own is one, too
inline unsigned emulated_block_threads, emulated_cluster_size;
inline emulated_dim emulated_first_block;  // of the cluster
inline unsigned long emulated_progress;    // grows with all that threads do but poll in vain
inline std::vector<std::function<void()>> emulated_pending;  // what hardware does at some time: see emulated_settle
inline const unsigned EMULATED_SHARED_BYTES = 227 << 10, EMULATED_CLUSTER = 8;
alignas(1024) inline unsigned char emulated_shared[EMULATED_CLUSTER][EMULATED_SHARED_BYTES];
#define emulated_dynamic_shared emulated_shared[emulated_rank()]

// Of this thread's block in its cluster.
inline unsigned emulated_rank() { return emulated_current / emulated_block_threads; }

// Saves the registers that a call keeps, and goes on where `to` was saved.
extern "C" void emulated_switch(void **from, void *to);
asm(R"(
    .weak emulated_switch
    .type emulated_switch, @function
emulated_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
)");

inline void emulated_wait(emulated_state state) {
  emulated_fiber &self = emulated_fibers[emulated_current];
  self.state = state;
  if (state != POLLS) emulated_progress++;
  emulated_switch(&self.stack_pointer, emulated_scheduler);
}

inline void emulated_start() {
  emulated_function(emulated_arguments);
  emulated_wait(DONE);
  abort();
}

[[noreturn]] inline void emulated_fail(const char *what) {
  fprintf(stderr, "emulated GPU: block (%u, %u, %u): %s\n", blockIdx.x, blockIdx.y, blockIdx.z, what);
  abort();
}

// Number `number` among the threads of the cluster.
inline void emulated_place(unsigned number) {
  emulated_current = number;
  unsigned own = number % emulated_block_threads;
  emulated_thread_index = {own % blockDim.x, own / blockDim.x % blockDim.y, own / blockDim.x / blockDim.y};
  emulated_block_index = emulated_first_block;
  emulated_block_index.x += number / emulated_block_threads;
}

inline void emulated_resume(unsigned number) {
  emulated_place(number);
  emulated_switch(&emulated_scheduler, emulated_fibers[number].stack_pointer);
}

// Runs the threads of a warp until none can go on without other warps.
inline void emulated_warp(unsigned first, unsigned end) {
  for (unsigned i = first; i < end; i++)
    if (emulated_fibers[i].state == POLLS) emulated_fibers[i].state = RUNS;
  for (;;) {
    unsigned waiting = 0, polling = 0, others = 0;
    for (unsigned i = first; i < end; i++) {
      if (emulated_fibers[i].state == RUNS) emulated_resume(i);
      waiting += emulated_fibers[i].state == WAITS_FOR_WARP;
      polling += emulated_fibers[i].state == POLLS;
      others += emulated_fibers[i].state == WAITS_FOR_BLOCK || emulated_fibers[i].state == WAITS_FOR_CLUSTER;
    }
    if (waiting == 0 || polling != 0) return;
    if (others != 0) emulated_fail("some threads of a warp wait for it, others for the block");
    for (unsigned i = first; i < end; i++)
      if (emulated_fibers[i].state == WAITS_FOR_WARP) emulated_fibers[i].state = RUNS;
  }
}

// Lets threads first .. end - 1 go on where all of them that are not done wait so.
inline void emulated_release(emulated_state waiting, unsigned first, unsigned end) {
  unsigned there = 0;
  for (unsigned i = first; i < end; i++) {
    there += emulated_fibers[i].state == waiting;
    if (emulated_fibers[i].state != waiting && emulated_fibers[i].state != DONE) return;
  }
  emulated_progress += there;
  for (unsigned i = first; i < end; i++)
    if (emulated_fibers[i].state == waiting) emulated_fibers[i].state = RUNS;
}

// What hardware does on its own happens as late as it may: when no thread can go on without it. One thing is done
// then, in no particular order.
inline void emulated_settle() {
  static unsigned random = 1;
  if (emulated_pending.empty()) emulated_fail("all threads wait for what does not come");
  random = random * 1664525 + 1013904223;
  auto chosen = emulated_pending.begin() + (random >> 16) % emulated_pending.size();
  auto work = std::move(*chosen);
  emulated_pending.erase(chosen);
  work();
}

// Runs the blocks of a cluster, of which the first is `emulated_block_index`.
inline void emulated_cluster(void (*function)(void **), void **arguments, int waits, unsigned blocks) {
  unsigned threads = blockDim.x * blockDim.y * blockDim.z, count = threads * blocks;
  emulated_clusters++;
  emulated_block_threads = threads;
  emulated_cluster_size = blocks;
  emulated_first_block = emulated_block_index;
  if (blocks > EMULATED_CLUSTER || gridDim.x % blocks != 0) emulated_fail("a grid that is no multiple of its clusters");
  // Uninitialised memory must not look like zeros.
  memset(emulated_shared, 0xff, blocks * sizeof emulated_shared[0]);
  if (!waits) {
    for (unsigned i = 0; i < count; i++) {
      emulated_place(i);
      function(arguments);
    }
    return;
  }
  emulated_function = function;
  emulated_arguments = arguments;
  while (emulated_fibers.size() < count)
    emulated_fibers.push_back({nullptr, (char *)aligned_alloc(64, EMULATED_STACK), RUNS});
  for (unsigned i = 0; i < count; i++) {
    void **top = (void **)(emulated_fibers[i].stack + EMULATED_STACK) - 2;
    *top = (void *)emulated_start;
    emulated_fibers[i].stack_pointer = top - 6;
    emulated_fibers[i].state = RUNS;
  }
  for (;;) {
    unsigned long before = emulated_progress;
    unsigned done = 0;
    for (unsigned block = 0; block < count; block += threads)
      for (unsigned first = 0; first < threads; first += 32)
        emulated_warp(block + first, block + (first + 32 < threads ? first + 32 : threads));
    for (unsigned block = 0; block < count; block += threads) emulated_release(WAITS_FOR_BLOCK, block, block + threads);
    emulated_release(WAITS_FOR_CLUSTER, 0, count);
    for (unsigned i = 0; i < count; i++) done += emulated_fibers[i].state == DONE;
    if (done == count) break;
    if (emulated_progress == before) emulated_settle();
  }
  if (!emulated_pending.empty()) emulated_fail("a block ended before what it asked for was there");
}

// ---- what threads do together ----

inline void __syncthreads() { emulated_wait(WAITS_FOR_BLOCK); }
inline void __syncwarp(unsigned = ~0u) { emulated_wait(WAITS_FOR_WARP); }

// Gives `mine` to the warp and takes what its thread `lane` gave.
template <typename T> T emulated_exchange(T mine, unsigned lane) {
  static T given[EMULATED_CLUSTER * 1024];
  unsigned self = emulated_current;
  given[self] = mine;
  __syncwarp();
  T taken = given[self / 32 * 32 + lane % 32];
  __syncwarp();
  return taken;
}
template <typename T> T __shfl_sync(unsigned, T value, int lane, int = 32) { return emulated_exchange(value, lane); }
template <typename T> T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
  return emulated_exchange(value, emulated_current % 32 ^ mask);
}
template <typename T> T __shfl_down_sync(unsigned, T value, int by, int = 32) {
  unsigned lane = emulated_current % 32 + by;
  return emulated_exchange(value, lane < 32 ? lane : emulated_current % 32);
}

// ---- scalars ----

template <typename T> T min(T a, T b) { return b < a ? b : a; }
template <typename T> T max(T a, T b) { return a < b ? b : a; }
inline float max(float a, float b) { return fmaxf(a, b); }
inline float min(float a, float b) { return fminf(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline int64_t min(int64_t a, int b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int b) { return a < b ? b : a; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline int __float_as_int(float x) { int y; memcpy(&y, &x, 4); return y; }
inline float __int_as_float(int x) { float y; memcpy(&y, &x, 4); return y; }
template <typename T> T __ldg(const T *p) { return *p; }
template <typename T> T __ldcg(const T *p) { return *p; }
inline long long clock64() { return (long long)__builtin_ia32_rdtsc(); }
template <typename T> T atomicAdd(T *p, T v) { T old = *p; *p += v; return old; }
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; i++) c += (int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i);
  return c;
}

// ---- vectors ----

#define EMULATED_VECTORS(T, N)                                                                            \
  struct alignas(2 * sizeof(T)) N##2 { T x, y; };                                                         \
  struct N##3 { T x, y, z; };                                                                             \
  struct alignas(4 * sizeof(T)) N##4 { T x, y, z, w; };                                                   \
  inline N##2 make_##N##2(T x, T y) { return {x, y}; }                                                    \
  inline N##3 make_##N##3(T x, T y, T z) { return {x, y, z}; }                                            \
  inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATED_VECTORS(float, float)
EMULATED_VECTORS(double, double)
EMULATED_VECTORS(int, int)
EMULATED_VECTORS(unsigned, uint)
EMULATED_VECTORS(signed char, char)
EMULATED_VECTORS(unsigned char, uchar)
EMULATED_VECTORS(short, short)
EMULATED_VECTORS(unsigned short, ushort)
EMULATED_VECTORS(long long, longlong)
EMULATED_VECTORS(unsigned long long, ulonglong)

