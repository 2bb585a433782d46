/* Checks of the CPU before any generated instruction runs on it. */
#ifndef TCOMP_CPU_H
#define TCOMP_CPU_H

#include <sched.h>
#include <stddef.h>

#include "model_info.h"

/* The first of the comma-separated `features` that this CPU or its operating system lacks, in words, in
 * `missing`; 0 when all are there, 1 when one is missing. Features have LLVM's names; `sve256` is SVE in vectors
 * of 256 bits, no more and no fewer. */
int tcomp_cpu_lacks(const char *features, char *missing, size_t missing_bytes);

/* The variant for the fastest core among `cpus`, by the table of `count` cores, slowest first. 0, the
 * preferred one, where the cores do not say what they are or one is not in the table: it may be faster than
 * those that are. Needs _GNU_SOURCE. */
int32_t tcomp_cpu_variant(const cpu_set_t *cpus, const tcomp_core *cores, int32_t count);

#endif
