/* Where threads run: by a list of CPUs, and by their speed as the folder of the first argument tells it. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

static const char *cpu_folder;
#define CPU_FOLDER cpu_folder
#include "affinity.c"
#include "pool.h"

#include "check.h"
#include "clock.h"
#include "launch.h"

uint64_t tcomp_now(void) { return 0; }
const char *tcomp_error(const tcomp_context *context) { return context == NULL ? "" : "context"; }

static atomic_int ran_elsewhere;

static int body(int task, parallel_env *env, void *data) {
  (void)task, (void)env;
  for (volatile int i = 0; i < 20000; i++) continue;
  if (sched_getcpu() != *(int *)data) atomic_store(&ran_elsewhere, 1);
  return 0;
}

static uint64_t chosen(int32_t cpus, uint64_t mask) {
  tcomp_options options = {.struct_bytes = sizeof options, .cpus = cpus, .cpu_mask = mask};
  cpu_set_t set;
  uint64_t found = 0;
  int32_t count = tcomp_choose_cpus(&options, &set);
  for (int cpu = 0; cpu < 64; cpu++) found |= (uint64_t)(CPU_ISSET(cpu, &set) != 0) << cpu;
  CHECK(count == CPU_COUNT(&set))
  return found;
}

static void threads_stay(int cpu) {
  tcomp_options options = {.struct_bytes = sizeof options, .threads = 3, .cpu_mask = (uint64_t)1 << cpu};
  cpu_set_t before, after;
  CHECK(sched_getaffinity(0, sizeof before, &before) == 0)
  tcomp_pool *pool = tcomp_pool_create(&options), *none = tcomp_pool_enter(pool);
  for (int i = 0; i < 20; i++) CHECK(__TVMBackendParallelLaunch(body, &cpu, 0) == 0)
  tcomp_pool_leave(pool, none);
  CHECK(!atomic_load(&ran_elsewhere))
  CHECK(sched_getaffinity(0, sizeof after, &after) == 0 && CPU_EQUAL(&before, &after))
  tcomp_pool_set_threads(pool, 0);
  CHECK(tcomp_pool_threads(pool) == 1) /* by default as many as CPUs */
  tcomp_pool_destroy(pool);
}

int main(int count, char **arguments) {
  char path[4096];
  CHECK(count == 2)
  cpu_folder = arguments[1];

  CHECK(chosen(TCOMP_CPUS_ALL, 0) == 3)
  CHECK(chosen(TCOMP_CPUS_ALL, 2) == 2 && chosen(TCOMP_CPUS_FAST, 1) == 1 && chosen(TCOMP_CPUS_ALL, 4) == 0)
  CHECK(chosen(TCOMP_CPUS_FAST, 0) == 2 && chosen(TCOMP_CPUS_SLOW, 0) == 1) /* by capacity */
  snprintf(path, sizeof path, "%s/frequency", arguments[1]);
  cpu_folder = path;
  CHECK(chosen(TCOMP_CPUS_FAST, 0) == 1 && chosen(TCOMP_CPUS_SLOW, 0) == 2)
  cpu_folder = "/nowhere";
  CHECK(chosen(TCOMP_CPUS_FAST, 0) == 3 && chosen(TCOMP_CPUS_SLOW, 0) == 3)
  threads_stay(0);
  threads_stay(1);
  return 0;
}
