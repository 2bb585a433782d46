// Tensor cores and asynchronous copies of GPUs from sm_80 on. Each function is one instruction, which all threads
// of a warp execute together (copies and numbers: each thread on its own); which element a register holds is said in
// the PTX ISA, "Matrix Fragments" of `mma`.
#pragma once

// `value`, which the compiler takes for another one each time: it keeps nothing in registers that follows from it.
__device__ __forceinline__ int tcomp_anew(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

__device__ __forceinline__ unsigned tcomp_shared_address(const void *shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

// Four matrices of 8 rows of 16 bytes; thread i gives the address of row i % 8 of matrix i / 8, and gets 4 bytes of
// each: those at 4 * (i % 4) of row i / 4.
__device__ __forceinline__ void tcomp_load_matrices(unsigned *registers, const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(tcomp_shared_address(row)));
}

// As tcomp_load_matrices, each matrix of 8x8 elements of 16 bits transposed.
__device__ __forceinline__ void tcomp_load_matrices_transposed(unsigned *registers, const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(tcomp_shared_address(row)));
}

// Four float32 numbers as the nearest of tf32; mma ignores the 13 bits that tf32 lacks. NaN and infinity stay so.
__device__ __forceinline__ void tcomp_round_tf32(unsigned *registers) {
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (fabsf(__uint_as_float(registers[i])) < __int_as_float(0x7f800000)) registers[i] += 0x1000u;
}

// sums[16, 8] += a[16, depth] * b[depth, 8], 32 bytes of depth.
#define TCOMP_MULTIPLY(NAME, SUM, CONSTRAINT, INSTRUCTION)                                                        \
  __device__ __forceinline__ void NAME(SUM *sums, const unsigned *a, const unsigned *b) {                         \
    asm volatile(INSTRUCTION " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                   \
                 : "+" CONSTRAINT(sums[0]), "+" CONSTRAINT(sums[1]), "+" CONSTRAINT(sums[2]),                     \
                   "+" CONSTRAINT(sums[3])                                                                        \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                             \
  }
TCOMP_MULTIPLY(tcomp_multiply_float16, float, "f", "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32")
TCOMP_MULTIPLY(tcomp_multiply_bfloat16, float, "f", "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32")
TCOMP_MULTIPLY(tcomp_multiply_tf32, float, "f", "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32")
TCOMP_MULTIPLY(tcomp_multiply_int8, int, "r", "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32")
// From sm_89 on.
TCOMP_MULTIPLY(tcomp_multiply_float8_e4m3fn, float, "f", "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32")
TCOMP_MULTIPLY(tcomp_multiply_float8_e5m2, float, "f", "mma.sync.aligned.m16n8k32.row.col.f32.e5m2.e5m2.f32")
#undef TCOMP_MULTIPLY

// Two numbers, the first in the lower half, as elements of 16 bits.
__device__ __forceinline__ unsigned tcomp_pack_float16(float a, float b) {
  unsigned pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(b), "f"(a));
  return pair;
}
__device__ __forceinline__ unsigned tcomp_pack_bfloat16(float a, float b) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(b), "f"(a));
  return pair;
}

// 2^x within 2 ulp; zero where that is below 2^-126.
__device__ __forceinline__ float tcomp_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Copies 16 bytes from global to shared memory, which are there after a wait; zeros where not `inside`.
__device__ __forceinline__ void tcomp_copy_async(void *shared, const void *global, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(tcomp_shared_address(shared)), "l"(global),
               "r"(inside ? 16 : 0)
               : "memory");
}

// As above, if `live`: an instruction with a predicate, where a branch would keep others from moving past it.
__device__ __forceinline__ void tcomp_copy_async(void *shared, const void *global, bool inside, bool live) {
  asm volatile("{\n.reg .pred live;\nsetp.ne.u32 live, %3, 0;\n"
               "@live cp.async.cg.shared.global [%0], [%1], 16, %2;\n}" ::"r"(tcomp_shared_address(shared)),
               "l"(global), "r"(inside ? 16 : 0), "r"(static_cast<unsigned>(live))
               : "memory");
}

// Stores 16 bytes at once.
__device__ __forceinline__ void tcomp_store_chunk(void *to, const void *from) {
  *static_cast<uint4 *>(to) = *static_cast<const uint4 *>(from);
}

// Stores COUNT words of 32 bits at once.
template <int COUNT> __device__ __forceinline__ void tcomp_put_words(void *to, const void *from) {
  struct alignas(4 * COUNT) Words { unsigned word[COUNT]; };
  Words words;
#pragma unroll
  for (int i = 0; i < COUNT; i++) words.word[i] = static_cast<const unsigned *>(from)[i];
  *static_cast<Words *>(to) = words;
}

// The copies that this thread began since the last commit are one group.
__device__ __forceinline__ void tcomp_commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until only the last PENDING groups of this thread may be unfinished.
template <int PENDING> __device__ __forceinline__ void tcomp_wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
