#ifndef TCOMP_BIONIC_AUXV_H
#define TCOMP_BIONIC_AUXV_H

#define AT_HWCAP 16
#define AT_HWCAP2 26

unsigned long getauxval(unsigned long kind);

#endif
