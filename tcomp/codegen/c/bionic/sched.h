#ifndef TCOMP_BIONIC_SCHED_H
#define TCOMP_BIONIC_SCHED_H

#include <string.h>

#include "types.h"

#ifdef __LP64__
#define CPU_SETSIZE 1024
#else
#define CPU_SETSIZE 32
#endif
#define TCOMP_CPU_WORD_BITS (8 * sizeof(long))
#define TCOMP_CPU_WORD(cpu, set) ((set)->words[(size_t)(cpu) / TCOMP_CPU_WORD_BITS])
#define TCOMP_CPU_BIT(cpu) (1ul << (size_t)(cpu) % TCOMP_CPU_WORD_BITS)

typedef struct {
  unsigned long words[CPU_SETSIZE / TCOMP_CPU_WORD_BITS];
} cpu_set_t;

#define CPU_ZERO(set) memset(set, 0, sizeof *(set))
#define TCOMP_HAS_CPU(cpu) ((size_t)(cpu) < CPU_SETSIZE)
#define CPU_SET(cpu, set) (void)(TCOMP_HAS_CPU(cpu) && (TCOMP_CPU_WORD(cpu, set) |= TCOMP_CPU_BIT(cpu)))
#define CPU_CLR(cpu, set) (void)(TCOMP_HAS_CPU(cpu) && (TCOMP_CPU_WORD(cpu, set) &= ~TCOMP_CPU_BIT(cpu)))
#define CPU_ISSET(cpu, set) (TCOMP_HAS_CPU(cpu) && (TCOMP_CPU_WORD(cpu, set) & TCOMP_CPU_BIT(cpu)) != 0)
#define CPU_COUNT(set) __sched_cpucount(sizeof *(set), set)

int __sched_cpucount(size_t bytes, const cpu_set_t *set);
int sched_getaffinity(pid_t process, size_t bytes, cpu_set_t *set);
int sched_setaffinity(pid_t process, size_t bytes, const cpu_set_t *set);
int sched_getcpu(void);
int sched_yield(void);

#endif
