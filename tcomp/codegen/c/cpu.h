/* Checks of the CPU before any generated instruction runs on it. */
#ifndef TCOMP_CPU_H
#define TCOMP_CPU_H

#include <stddef.h>

/* The first of the comma-separated `features` (LLVM's names) that this CPU or its operating system
 * lacks, copied into `missing`; 0 when all are there, 1 when one is missing. */
int tcomp_cpu_lacks(const char *features, char *missing, size_t missing_bytes);

#endif
