/* Apple's systems have no masks of CPUs: none can be asked for, and none is set. */
#ifndef TCOMP_APPLE_SCHED_H
#define TCOMP_APPLE_SCHED_H

#include_next <sched.h>
#include <string.h>
#include <sys/types.h>

typedef struct {
  unsigned long words[16];
} cpu_set_t;

#define CPU_SETSIZE 1024
#define CPU_ZERO(set) memset(set, 0, sizeof *(set))
#define CPU_SET(cpu, set) ((set)->words[(cpu) / 64] |= 1ul << (cpu) % 64)
#define CPU_CLR(cpu, set) ((set)->words[(cpu) / 64] &= ~(1ul << (cpu) % 64))
#define CPU_ISSET(cpu, set) ((set)->words[(cpu) / 64] >> (cpu) % 64 & 1)

static inline int CPU_COUNT(const cpu_set_t *set) {
  int count = 0;
  for (int i = 0; i < 16; i++) count += __builtin_popcountl(set->words[i]);
  return count;
}

static inline int sched_getaffinity(pid_t process, size_t bytes, cpu_set_t *set) {
  return (void)process, (void)bytes, (void)set, -1;
}
static inline int sched_setaffinity(pid_t process, size_t bytes, const cpu_set_t *set) {
  return (void)process, (void)bytes, (void)set, -1;
}
static inline int sched_getcpu(void) { return -1; }

#endif
