/* The bits that Linux has for features of the CPU, from what Apple's systems say about it. */
#ifndef TCOMP_APPLE_AUXV_H
#define TCOMP_APPLE_AUXV_H

#include <stddef.h>
#include <sys/sysctl.h>

#define AT_HWCAP 16
#define AT_HWCAP2 26

static inline unsigned long getauxval(unsigned long vector) {
  static const struct {
    const char *name;
    unsigned long vector;
    int bit;
  } KNOWN[] = {
      {"hw.optional.AdvSIMD", AT_HWCAP, 1},           {"hw.optional.arm.FEAT_FP16", AT_HWCAP, 10},
      {"hw.optional.arm.FEAT_RDM", AT_HWCAP, 12},     {"hw.optional.arm.FEAT_FCMA", AT_HWCAP, 14},
      {"hw.optional.arm.FEAT_DotProd", AT_HWCAP, 20}, {"hw.optional.arm.FEAT_FHM", AT_HWCAP, 23},
      {"hw.optional.arm.FEAT_I8MM", AT_HWCAP2, 13},   {"hw.optional.arm.FEAT_BF16", AT_HWCAP2, 14},
  };
  unsigned long found = vector == AT_HWCAP ? 2 : 0; /* every 64-bit CPU of Apple's has NEON */
  for (size_t i = 0; i < sizeof KNOWN / sizeof *KNOWN; i++) {
    int value = 0;
    size_t bytes = sizeof value;
    if (KNOWN[i].vector == vector && sysctlbyname(KNOWN[i].name, &value, &bytes, NULL, 0) == 0 && value)
      found |= 1ul << KNOWN[i].bit;
  }
  return found;
}

#endif
