/* Which CPUs the threads of a context run on. */
#ifndef TCOMP_AFFINITY_H
#define TCOMP_AFFINITY_H

#include <sched.h>

#include "tcomp.h"

/* Those that `options` hints at, of the CPUs that the calling thread may use: their number, 0 where
 * cpu_mask has none of them. `set` is empty where the system does not tell. Needs _GNU_SOURCE. */
int32_t tcomp_choose_cpus(const tcomp_options *options, cpu_set_t *set);

#endif
