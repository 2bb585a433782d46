// Tensor cores, tile copies and barriers of GPUs of architecture sm_90a. Each function is one instruction or two; places
// in shared memory are addresses of its own window, as numbers. Source: PTX ISA, "Asynchronous Warpgroup Level Matrix
// Instructions", `cp.async.bulk.tensor`, `mbarrier`.
#pragma once

#ifdef __CUDACC_RTC__  // which has no cuda.h
struct alignas(128) CUtensorMap {
  unsigned long long opaque[16];
};
#endif

// The first multiple of 1024 in the shared memory that is given at launch: swizzles repeat after so many bytes.
__device__ __forceinline__ unsigned tcomp_shared_begin(const void *shared) {
  return (static_cast<unsigned>(__cvta_generic_to_shared(shared)) + 1023) / 1024 * 1024;
}

// ---- barriers in shared memory, of 8 bytes: a phase is over when `count` threads and all bytes have arrived ----

__device__ __forceinline__ void tcomp_barrier_init(unsigned barrier, unsigned count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

// What this thread initialised is seen by copies and by other blocks of the cluster.
__device__ __forceinline__ void tcomp_barriers_are_ready() {
  asm volatile("fence.mbarrier_init.release.cluster;\n"
               "fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void tcomp_barrier_arrive(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and announces `bytes` that copies will bring in this phase.
__device__ __forceinline__ void tcomp_barrier_expect(unsigned barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Waits for the end of the phase of this parity; phases count from 0.
__device__ __forceinline__ void tcomp_barrier_wait(unsigned barrier, unsigned parity) {
  unsigned over;
  do {
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.b32 %0, 1, 0, p;\n"
                 "}"
                 : "=r"(over)
                 : "r"(barrier), "r"(parity)
                 : "memory");
  } while (over == 0);
}

// ---- copies of tiles: one thread asks for all ----

// The tile at (x, y, z), x being along memory, of the tensor whose map is at `map`; its bytes arrive at `barrier`.
__device__ __forceinline__ void tcomp_copy_tile(unsigned shared, unsigned long long map, unsigned barrier, int x,
                                                int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
               "[%2];" ::"r"(shared),
               "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z)
               : "memory");
}
// Of tensors of four and five axes.
__device__ __forceinline__ void tcomp_copy_tile(unsigned shared, unsigned long long map, unsigned barrier, int x,
                                                int y, int z, int u) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
               "%6}], [%2];" ::"r"(shared),
               "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(u)
               : "memory");
}
__device__ __forceinline__ void tcomp_copy_tile(unsigned shared, unsigned long long map, unsigned barrier, int x,
                                                int y, int z, int u, int v) {
  asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
               "%6, %7}], [%2];" ::"r"(shared),
               "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(u), "r"(v)
               : "memory");
}

// ---- copies of 16 bytes: each thread asks for some, and waits for its own ----

// Copies 16 bytes from global to shared memory; zeros where not `inside`.
__device__ __forceinline__ void tcomp_gather_chunk(unsigned shared, const void *global, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(inside ? 16 : 0)
               : "memory");
}
// The copies since the last commit are one group.
__device__ __forceinline__ void tcomp_gathers_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until only the last PENDING groups may be unfinished.
template <int PENDING> __device__ __forceinline__ void tcomp_gathers_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
// Products see what this thread has waited for, once it has arrived at a barrier.
__device__ __forceinline__ void tcomp_gathers_are_seen() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- stores of tiles: a warp writes one to shared memory, and one of its threads asks for the store ----

// Four matrices of 8 rows of 16 bytes; thread i gives the address of row i % 8 of matrix i / 8 and, of each matrix, the
// 4 bytes at 4 * (i % 4) of row i / 4.
__device__ __forceinline__ void tcomp_write_matrices(unsigned row, const void *words) {
  const unsigned *own = static_cast<const unsigned *>(words);
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(own[0]), "r"(own[1]),
               "r"(own[2]), "r"(own[3])
               : "memory");
}
__device__ __forceinline__ void tcomp_write_two_words(unsigned place, const void *words) {
  const unsigned *own = static_cast<const unsigned *>(words);
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(place), "r"(own[0]), "r"(own[1]) : "memory");
}
// Stores see what this thread wrote, once their thread knows that it did.
__device__ __forceinline__ void tcomp_writes_are_seen() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// The tile at (x, y, z, w), x being along memory, of the tensor whose map is at `map`; what is beyond its ends is left
// out.
__device__ __forceinline__ void tcomp_store_tile(unsigned long long map, unsigned shared, int x, int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map), "r"(shared),
               "r"(x), "r"(y), "r"(z)
               : "memory");
}
__device__ __forceinline__ void tcomp_store_tile(unsigned long long map, unsigned shared, int x, int y, int z, int w) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
               "r"(shared), "r"(x), "r"(y), "r"(z), "r"(w)
               : "memory");
}
// The stores that this thread asked for since the last commit are one group.
__device__ __forceinline__ void tcomp_stores_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until only the last PENDING groups of this thread may still read shared memory.
template <int PENDING> __device__ __forceinline__ void tcomp_stores_wait() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

// ---- clusters: blocks that reach each other's shared memory, in which all have the same layout ----

// As tcomp_copy_tile, to the same place and barrier of each block of the cluster that has a bit in `blocks`.
__device__ __forceinline__ void tcomp_copy_tile_to(unsigned blocks, unsigned shared, unsigned long long map,
                                                   unsigned barrier, int x, int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, "
               "{%3, %4, %5}], [%2], %6;" ::"r"(shared),
               "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "h"(static_cast<unsigned short>(blocks))
               : "memory");
}

// Arrives at the barrier at this place of block `block` of the cluster.
__device__ __forceinline__ void tcomp_barrier_arrive_in(unsigned block, unsigned barrier) {
  asm volatile("{\n"
               ".reg .b32 place;\n"
               "mapa.shared::cluster.u32 place, %0, %1;\n"
               "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [place];\n"
               "}" ::"r"(barrier),
               "r"(block)
               : "memory");
}

// Waits for all threads of the cluster.
__device__ __forceinline__ void tcomp_cluster_wait() {
  asm volatile("barrier.cluster.arrive.release;\n"
               "barrier.cluster.wait.acquire;" ::: "memory");
}

// ---- registers of the warps of a group ----

template <int REGISTERS> __device__ __forceinline__ void tcomp_take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS> __device__ __forceinline__ void tcomp_give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// ---- turns: a barrier of a number from 1 to 15 is for so many threads, of which some do not wait ----

__device__ __forceinline__ void tcomp_turn_wait(unsigned barrier, unsigned threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void tcomp_turn_end(unsigned barrier, unsigned threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// ---- products by groups of four warps ----

// A matrix in shared memory, in the order of the 128-byte swizzle, as tensor cores are told of it: `leading` are bytes
// from 64 rows to the next where rows lie along memory, `stride` those from 8 lines to the next.
__device__ __forceinline__ unsigned long long tcomp_matrix(unsigned shared, unsigned leading, unsigned stride) {
  unsigned low = (shared & 0x3ffff) >> 4 | (leading >> 4) << 16, high = stride >> 4 | 1u << 30;
  return static_cast<unsigned long long>(high) << 32 | low;
}

// What this warp did to registers of sums before is done.
__device__ __forceinline__ void tcomp_products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// The products since the last commit are one group.
__device__ __forceinline__ void tcomp_products_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until only the last PENDING groups may be unfinished.
template <int PENDING> __device__ __forceinline__ void tcomp_products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Nothing that uses these registers moves across this place, before or behind which products use them.
template <int COUNT> __device__ __forceinline__ void tcomp_keep(float *registers) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int COUNT> __device__ __forceinline__ void tcomp_keep(unsigned *registers) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : "+r"(registers[i])::"memory");
}

// sums[64, N] = a[64, depth] * b[depth, N] + (accumulate ? sums : 0), 32 bytes of depth. Thread i of the group has, for
// each 8 columns, two of row 16 * (i / 32) + i % 32 / 4, at 2 * (i % 4), and the same two of the 8th row below.
#define TCOMP_16(C, s) \
  C((s)[0]), C((s)[1]), C((s)[2]), C((s)[3]), C((s)[4]), C((s)[5]), C((s)[6]), C((s)[7]), C((s)[8]), C((s)[9]), \
      C((s)[10]), C((s)[11]), C((s)[12]), C((s)[13]), C((s)[14]), C((s)[15])
#define TCOMP_32(C, s) TCOMP_16(C, s), TCOMP_16(C, s + 16)
#define TCOMP_48(C, s) TCOMP_32(C, s), TCOMP_16(C, s + 32)
#define TCOMP_64(C, s) TCOMP_48(C, s), TCOMP_16(C, s + 48)
#define TCOMP_80(C, s) TCOMP_64(C, s), TCOMP_16(C, s + 64)
#define TCOMP_96(C, s) TCOMP_80(C, s), TCOMP_16(C, s + 80)
#define TCOMP_112(C, s) TCOMP_96(C, s), TCOMP_16(C, s + 96)
#define TCOMP_128(C, s) TCOMP_112(C, s), TCOMP_16(C, s + 112)
#define TCOMP_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define TCOMP_NAMES_32 \
  TCOMP_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define TCOMP_NAMES_48 \
  TCOMP_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define TCOMP_NAMES_64 \
  TCOMP_NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define TCOMP_NAMES_80 \
  TCOMP_NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define TCOMP_NAMES_96 \
  TCOMP_NAMES_80 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define TCOMP_NAMES_112 \
  TCOMP_NAMES_96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define TCOMP_NAMES_128 \
  TCOMP_NAMES_112 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define TCOMP_FLOAT(x) "+f"(x)
#define TCOMP_INT(x) "+r"(x)

// COUNT are the sums of a thread, N / 2; A, B and P the numbers of the operands behind them.
#define TCOMP_PRODUCT(INSTRUCTION, COUNT, A, B, P, REST)                             \
  "{\n.reg .pred p;\nsetp.ne.b32 p, " P ", 0;\n" INSTRUCTION " {" TCOMP_NAMES_##COUNT \
  "}, " A ", " B ", p" REST ";\n}"

// Rows of a, and columns of b, lie along memory where they are transposed.
#define TCOMP_PRODUCT_16(NAME, TYPE, N, COUNT, A, B, P, TA, TB)                                                         \
  template <int TRANSPOSE_A, int TRANSPOSE_B>                                                                           \
  __device__ __forceinline__ void NAME(float *sums, unsigned long long a, unsigned long long b, int accumulate) {       \
    asm volatile(TCOMP_PRODUCT("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE, COUNT, A, B, P,         \
                               ", 1, 1, " TA ", " TB)                                                                   \
                 : TCOMP_##COUNT(TCOMP_FLOAT, sums)                                                                     \
                 : "l"(a), "l"(b), "r"(accumulate), "n"(TRANSPOSE_A), "n"(TRANSPOSE_B));                                \
  }
#define TCOMP_PRODUCT_8(NAME, N, COUNT, A, B, P)                                                                        \
  template <int TRANSPOSE_A, int TRANSPOSE_B>                                                                           \
  __device__ __forceinline__ void NAME(int *sums, unsigned long long a, unsigned long long b, int accumulate) {         \
    static_assert(TRANSPOSE_A == 0 && TRANSPOSE_B == 0, "the depth of int8 lies along memory");                         \
    asm volatile(TCOMP_PRODUCT("wgmma.mma_async.sync.aligned.m64n" #N "k32.s32.s8.s8", COUNT, A, B, P, "")              \
                 : TCOMP_##COUNT(TCOMP_INT, sums)                                                                       \
                 : "l"(a), "l"(b), "r"(accumulate));                                                                    \
  }
// Of tf32, that is float32 whose last 13 bits the instruction leaves out: copies round to what it takes. Of float8.
#define TCOMP_PRODUCT_ALONG(NAME, TYPES, N, COUNT, A, B, P)                                                             \
  template <int TRANSPOSE_A, int TRANSPOSE_B>                                                                           \
  __device__ __forceinline__ void NAME(float *sums, unsigned long long a, unsigned long long b, int accumulate) {       \
    static_assert(TRANSPOSE_A == 0 && TRANSPOSE_B == 0, "the depth lies along memory");                                 \
    asm volatile(TCOMP_PRODUCT("wgmma.mma_async.sync.aligned.m64n" #N TYPES, COUNT, A, B, P, ", 1, 1")                  \
                 : TCOMP_##COUNT(TCOMP_FLOAT, sums)                                                                     \
                 : "l"(a), "l"(b), "r"(accumulate));                                                                    \
  }
#define TCOMP_PRODUCTS(N, COUNT, A, B, P, TA, TB)                                                                       \
  TCOMP_PRODUCT_16(tcomp_product_float16_##N, "f16", N, COUNT, A, B, P, TA, TB)                                         \
  TCOMP_PRODUCT_16(tcomp_product_bfloat16_##N, "bf16", N, COUNT, A, B, P, TA, TB)                                       \
  TCOMP_PRODUCT_ALONG(tcomp_product_tf32_##N, "k8.f32.tf32.tf32", N, COUNT, A, B, P)                                    \
  TCOMP_PRODUCT_ALONG(tcomp_product_float8_e4m3fn_##N, "k32.f32.e4m3.e4m3", N, COUNT, A, B, P)                          \
  TCOMP_PRODUCT_ALONG(tcomp_product_float8_e5m2_##N, "k32.f32.e5m2.e5m2", N, COUNT, A, B, P)                            \
  TCOMP_PRODUCT_8(tcomp_product_int8_##N, N, COUNT, A, B, P)
TCOMP_PRODUCTS(64, 32, "%32", "%33", "%34", "%35", "%36")
TCOMP_PRODUCTS(128, 64, "%64", "%65", "%66", "%67", "%68")
TCOMP_PRODUCTS(192, 96, "%96", "%97", "%98", "%99", "%100")
TCOMP_PRODUCTS(256, 128, "%128", "%129", "%130", "%131", "%132")

// As above, a being in registers: thread i of the group has, of each 8 of the depth, what it would have as sums, two
// numbers in a register; those of the 8th row below come before those of the next 8 of the depth.
#define TCOMP_PRODUCT_OF(NAME, TYPE, N, COUNT, A, B, P, TB)                                                             \
  template <int TRANSPOSE_B>                                                                                            \
  __device__ __forceinline__ void NAME(float *sums, const unsigned *a, unsigned long long b, int accumulate) {          \
    asm volatile(TCOMP_PRODUCT("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE, COUNT, A, B, P,         \
                               ", 1, 1, " TB)                                                                           \
                 : TCOMP_##COUNT(TCOMP_FLOAT, sums)                                                                     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(TRANSPOSE_B));              \
  }
#define TCOMP_PRODUCTS_OF(N, COUNT, A, B, P, TB)                                  \
  TCOMP_PRODUCT_OF(tcomp_product_of_float16_##N, "f16", N, COUNT, A, B, P, TB)    \
  TCOMP_PRODUCT_OF(tcomp_product_of_bfloat16_##N, "bf16", N, COUNT, A, B, P, TB)
TCOMP_PRODUCTS_OF(32, 16, "{%16, %17, %18, %19}", "%20", "%21", "%22")
TCOMP_PRODUCTS_OF(64, 32, "{%32, %33, %34, %35}", "%36", "%37", "%38")
TCOMP_PRODUCTS_OF(96, 48, "{%48, %49, %50, %51}", "%52", "%53", "%54")
TCOMP_PRODUCTS_OF(128, 64, "{%64, %65, %66, %67}", "%68", "%69", "%70")
TCOMP_PRODUCTS_OF(160, 80, "{%80, %81, %82, %83}", "%84", "%85", "%86")
TCOMP_PRODUCTS_OF(192, 96, "{%96, %97, %98, %99}", "%100", "%101", "%102")
TCOMP_PRODUCTS_OF(224, 112, "{%112, %113, %114, %115}", "%116", "%117", "%118")
TCOMP_PRODUCTS_OF(256, 128, "{%128, %129, %130, %131}", "%132", "%133", "%134")
