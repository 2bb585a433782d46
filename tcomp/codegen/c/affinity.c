#define _GNU_SOURCE
#include "affinity.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#ifndef CPU_FOLDER /* a test has another */
#define CPU_FOLDER "/sys/devices/system/cpu"
#endif

size_t tcomp_read_cpu(int cpu, const char *file, char *text, size_t bytes) {
  char path[128];
  snprintf(path, sizeof path, "%s/cpu%d/%s", CPU_FOLDER, cpu, file);
  int opened = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t count = opened < 0 ? 0 : read(opened, text, bytes - 1);
  if (opened >= 0) close(opened);
  text[count > 0 ? count : 0] = '\0';
  return count > 0 ? (size_t)count : 0;
}

/* How fast a CPU is beside the others: its capacity, which counts instructions a cycle too, or its highest
 * frequency; 0: unknown. */
static long cpu_speed(int cpu, const char *file) {
  char text[10]; /* what fits a long */
  size_t count = tcomp_read_cpu(cpu, file, text, sizeof text);
  long speed = 0;
  for (size_t i = 0; i < count && text[i] >= '0' && text[i] <= '9'; i++) speed = 10 * speed + text[i] - '0';
  return speed;
}

/* Keeps of `set` the CPUs above the middle between the slowest and the fastest, or those below it: phones
 * have two or three kinds of cores, of which the large and the largest work well together. Keeps all where
 * the CPUs are alike or the system does not tell. */
static void keep_kind(cpu_set_t *set, int fast, const char *file) {
  long speeds[CPU_SETSIZE], least = 0, most = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, set)) continue;
    speeds[cpu] = cpu_speed(cpu, file);
    if (speeds[cpu] <= 0) return;
    if (least == 0 || speeds[cpu] < least) least = speeds[cpu];
    if (speeds[cpu] > most) most = speeds[cpu];
  }
  if (least == most) return;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, set) && (2 * speeds[cpu] > least + most) != fast) CPU_CLR(cpu, set);
}

int32_t tcomp_choose_cpus(const tcomp_options *options, cpu_set_t *set) {
  CPU_ZERO(set);
  if (sched_getaffinity(0, sizeof *set, set) != 0) {
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count > 0 ? (int32_t)count : 1;
  }
  if (options->cpu_mask != 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
      if (cpu >= 64 || !(options->cpu_mask >> cpu & 1)) CPU_CLR(cpu, set);
  } else if (options->cpus != TCOMP_CPUS_ALL) {
    int32_t all = CPU_COUNT(set);
    keep_kind(set, options->cpus == TCOMP_CPUS_FAST, "cpu_capacity");
    if (CPU_COUNT(set) == all) keep_kind(set, options->cpus == TCOMP_CPUS_FAST, "cpufreq/cpuinfo_max_freq");
  }
  return CPU_COUNT(set);
}
