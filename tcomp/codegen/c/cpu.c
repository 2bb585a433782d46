#define _GNU_SOURCE
#include "cpu.h"

#include <string.h>

static void copy(const char *name, size_t length, char *text, size_t text_bytes) {
  size_t kept = length < text_bytes - 1 ? length : text_bytes - 1;
  memcpy(text, name, kept);
  text[kept] = '\0';
}

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef enum { EAX, EBX, ECX, EDX } cpu_register;
typedef enum { STATE_NONE, STATE_AVX, STATE_AVX512, STATE_AMX } cpu_state;

typedef struct {
  const char *name;
  unsigned leaf, subleaf;
  cpu_register reg;
  int bit;
  cpu_state state;
} cpu_feature;

/* Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2A, CPUID. */
static const cpu_feature FEATURES[] = {
    {"ssse3", 1, 0, ECX, 9, STATE_NONE},
    {"sse4.1", 1, 0, ECX, 19, STATE_NONE},
    {"sse4.2", 1, 0, ECX, 20, STATE_NONE},
    {"movbe", 1, 0, ECX, 22, STATE_NONE},
    {"popcnt", 1, 0, ECX, 23, STATE_NONE},
    {"fma", 1, 0, ECX, 12, STATE_AVX},
    {"avx", 1, 0, ECX, 28, STATE_AVX},
    {"f16c", 1, 0, ECX, 29, STATE_AVX},
    {"lzcnt", 0x80000001, 0, ECX, 5, STATE_NONE},
    {"bmi", 7, 0, EBX, 3, STATE_NONE},
    {"avx2", 7, 0, EBX, 5, STATE_AVX},
    {"bmi2", 7, 0, EBX, 8, STATE_NONE},
    {"avx512f", 7, 0, EBX, 16, STATE_AVX512},
    {"avx512dq", 7, 0, EBX, 17, STATE_AVX512},
    {"avx512ifma", 7, 0, EBX, 21, STATE_AVX512},
    {"avx512cd", 7, 0, EBX, 28, STATE_AVX512},
    {"avx512bw", 7, 0, EBX, 30, STATE_AVX512},
    {"avx512vl", 7, 0, EBX, 31, STATE_AVX512},
    {"avx512vbmi", 7, 0, ECX, 1, STATE_AVX512},
    {"avx512vbmi2", 7, 0, ECX, 6, STATE_AVX512},
    {"gfni", 7, 0, ECX, 8, STATE_NONE},
    {"vaes", 7, 0, ECX, 9, STATE_AVX},
    {"vpclmulqdq", 7, 0, ECX, 10, STATE_AVX},
    {"avx512vnni", 7, 0, ECX, 11, STATE_AVX512},
    {"avx512bitalg", 7, 0, ECX, 12, STATE_AVX512},
    {"avx512vpopcntdq", 7, 0, ECX, 14, STATE_AVX512},
    {"amx-bf16", 7, 0, EDX, 22, STATE_AMX},
    {"avx512fp16", 7, 0, EDX, 23, STATE_AVX512},
    {"amx-tile", 7, 0, EDX, 24, STATE_AMX},
    {"amx-int8", 7, 0, EDX, 25, STATE_AMX},
    {"avxvnni", 7, 1, EAX, 4, STATE_AVX},
    {"avx512bf16", 7, 1, EAX, 5, STATE_AVX512},
};

/* Bits of XCR0 that the operating system sets for registers it saves: SSE and AVX, opmask and zmm, tiles. */
static unsigned long long enabled_state(void) {
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & (1u << 27))) return 0;
  __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
  return ((unsigned long long)edx << 32) | eax;
}

/* Whether this process may use tiles: Linux gives leave to those that ask (Documentation/arch/x86/xstate.rst). */
static int tiles_allowed(void) {
  const long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILE_DATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA) == 0;
}

static int has_feature(const cpu_feature *feature) {
  static const unsigned long long NEEDED[] = {0, 0x6, 0xe6, 0x60006};
  unsigned registers[4];
  if (!__get_cpuid_count(feature->leaf, feature->subleaf, &registers[EAX], &registers[EBX], &registers[ECX],
                         &registers[EDX]))
    return 0;
  unsigned long long needed = NEEDED[feature->state];
  int is_there = (registers[feature->reg] >> feature->bit & 1) && (enabled_state() & needed) == needed;
  return is_there && (feature->state != STATE_AMX || tiles_allowed());
}

static int has(const char *name, size_t length) {
  for (size_t i = 0; i < sizeof FEATURES / sizeof *FEATURES; i++)
    if (strlen(FEATURES[i].name) == length && memcmp(FEATURES[i].name, name, length) == 0)
      return has_feature(&FEATURES[i]);
  return 0;
}

#define describe copy

int32_t tcomp_cpu_variant(const cpu_set_t *cpus, const tcomp_core *cores, int32_t count) {
  (void)cpus, (void)cores, (void)count; /* its features tell all that matters */
  return 0;
}
#elif defined(__aarch64__) || defined(__arm__)
#include <stdio.h>
#include <stdlib.h>
#include <sys/auxv.h>

#include "affinity.h"

typedef struct {
  const char *name;
  unsigned long vector; /* of the auxiliary vector that the kernel hands to a process */
  int bit;
} cpu_feature;

#ifndef AT_HWCAP2
#define AT_HWCAP2 26
#endif

/* Linux, Documentation/arch/arm64/elf_hwcaps.rst and arch/arm/include/uapi/asm/hwcap.h */
static const cpu_feature FEATURES[] = {
#if defined(__aarch64__)
    {"neon", AT_HWCAP, 1},      {"fullfp16", AT_HWCAP, 10}, {"rdm", AT_HWCAP, 12},  {"complxnum", AT_HWCAP, 14},
    {"dotprod", AT_HWCAP, 20},  {"fp16fml", AT_HWCAP, 23},  {"sve2", AT_HWCAP2, 1}, {"i8mm", AT_HWCAP2, 13},
    {"bf16", AT_HWCAP2, 14},
#else
    {"neon", AT_HWCAP, 12},
    {"vfp4", AT_HWCAP, 16},
#endif
};

/* Bits of SVE's vectors in this thread, 0 without SVE. Linux's PR_SVE_GET_VL answers the same. */
static unsigned long sve_bits(void) {
  unsigned long bytes = 0;
#if defined(__aarch64__)
  const unsigned long HWCAP_SVE_BIT = 1ul << 22;
  register unsigned long length __asm__("x0");
  if (!(getauxval(AT_HWCAP) & HWCAP_SVE_BIT)) return 0;
  __asm__ volatile(".inst 0x04bf5020 /* rdvl x0, #1 */" : "=r"(length));
  bytes = length;
#endif
  return 8 * bytes;
}

/* The bits in the name of SVE in vectors of one length, `sve256`; 0 for other features. */
static unsigned long length_in(const char *name, size_t length) {
  return length >= strlen("sve128") && memcmp(name, "sve", 3) == 0 ? (unsigned long)strtoull(name + 3, NULL, 10) : 0;
}

static int has(const char *name, size_t length) {
  unsigned long bits = length_in(name, length);
  if (bits) return sve_bits() == bits;
  for (size_t i = 0; i < sizeof FEATURES / sizeof *FEATURES; i++)
    if (strlen(FEATURES[i].name) == length && memcmp(FEATURES[i].name, name, length) == 0)
      return getauxval(FEATURES[i].vector) >> FEATURES[i].bit & 1;
  return 0;
}

/* What is missing where a CPU has not the feature of that name. */
static void describe(const char *name, size_t length, char *text, size_t text_bytes) {
  unsigned long bits = length_in(name, length);
  if (bits && sve_bits())
    snprintf(text, text_bytes, "sve of %lu bits (it has %lu)", bits, sve_bits());
  else
    copy(name, bits ? 3 : length, text, text_bytes);
}

/* MIDR_EL1 of a CPU as Linux shows it; 0 where it does not. */
static unsigned long long identity_of(int cpu) {
  char text[24];
  return tcomp_read_cpu(cpu, "regs/identification/midr_el1", text, sizeof text) ? strtoull(text, NULL, 16) : 0;
}

/* MIDR_EL1 of the CPU this runs on, which Linux answers in the CPU's place; 0 where it does not. */
static unsigned long long own_identity(void) {
  unsigned long long identity = 0;
#if defined(__aarch64__)
  const unsigned long HWCAP_CPUID_BIT = 1ul << 11;
  if (getauxval(AT_HWCAP) & HWCAP_CPUID_BIT) __asm__("mrs %0, MIDR_EL1" : "=r"(identity));
#endif
  return identity;
}

static int32_t row_of(unsigned long long identity, const tcomp_core *cores, int32_t count) {
  uint32_t core = (uint32_t)(identity >> 24 & 0xff) << 12 | (uint32_t)(identity >> 4 & 0xfff);
  for (int32_t row = 0; row < count; row++)
    if (cores[row].core == core) return row;
  return -1;
}

int32_t tcomp_cpu_variant(const cpu_set_t *cpus, const tcomp_core *cores, int32_t count) {
  int32_t fastest = -1;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    unsigned long long identity = CPU_ISSET(cpu, cpus) ? identity_of(cpu) : 0;
    if (identity == 0) continue;
    int32_t row = row_of(identity, cores, count);
    if (row < 0) return 0;
    if (row > fastest) fastest = row;
  }
  if (fastest < 0) fastest = row_of(own_identity(), cores, count);
  return fastest < 0 ? 0 : cores[fastest].variant;
}
#else
#error "no table of CPU features for this architecture"
#endif

int tcomp_cpu_lacks(const char *features, char *missing, size_t missing_bytes) {
  while (*features != '\0') {
    size_t length = strcspn(features, ",");
    if (!has(features, length)) {
      describe(features, length, missing, missing_bytes);
      return 1;
    }
    features += length + (features[length] == ',');
  }
  return 0;
}
