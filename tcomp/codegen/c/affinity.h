/* Which CPUs the threads of a context run on. */
#ifndef TCOMP_AFFINITY_H
#define TCOMP_AFFINITY_H

#include <sched.h>

#include "tcomp.h"

/* Those that `options` hints at, of the CPUs that the calling thread may use: their number, 0 where
 * cpu_mask has none of them. `set` is empty where the system does not tell. Needs _GNU_SOURCE. */
int32_t tcomp_choose_cpus(const tcomp_options *options, cpu_set_t *set);

/* Reads the beginning of a small file that the system has about `cpu` as a string of less than `bytes`;
 * answers its length, 0 where there is no such file. */
size_t tcomp_read_cpu(int cpu, const char *file, char *text, size_t bytes);

#endif
