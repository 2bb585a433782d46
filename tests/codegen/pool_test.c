/* Every chunk of every loop runs exactly once, whatever threads are asleep, late, stopped or too many. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "launch.h"
#include "pool.h"

enum { CHUNKS = 64, LOOPS = 2000 };
#define CHECK(condition)                                  \
  if (!(condition)) {                                     \
    printf("line %d: %s\n", __LINE__, #condition);        \
    _exit(1);                                             \
  }

typedef struct {
  atomic_int runs[CHUNKS];
  int failing, work, inner;
} loop;

uint64_t tcomp_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* What TVM generates for a parallel loop: the iterations of one task, by the number of tasks. */
static int body(int task, parallel_env *env, void *data) {
  loop *l = data;
  int step = (CHUNKS + env->num_task - 1) / env->num_task, status = 0;
  for (int chunk = task * step; chunk < (task + 1) * step && chunk < CHUNKS; chunk++) {
    atomic_fetch_add(&l->runs[chunk], 1);
    for (volatile int i = 0; i < l->work; i++) continue;
    if (chunk == l->failing) status = -7;
    if (l->inner && chunk % 16 == 0) {
      loop inner = {.failing = -1};
      CHECK(__TVMBackendParallelLaunch(body, &inner, 0) == 0)
      for (int i = 0; i < CHUNKS; i++) CHECK(inner.runs[i] == 1)
    }
  }
  return status;
}

static void launch(int failing, int work, int inner) {
  loop l = {.failing = failing, .work = work, .inner = inner};
  int status = __TVMBackendParallelLaunch(body, &l, 0);
  CHECK(status == (failing >= 0 ? -7 : 0))
  for (int i = 0; i < CHUNKS; i++) CHECK(l.runs[i] == 1)
}

static void *use_a_pool(void *threads) {
  tcomp_options options = {.struct_bytes = sizeof options, .threads = *(int32_t *)threads};
  tcomp_pool *pool = tcomp_pool_create(&options);
  CHECK(pool != NULL)
  for (int run = 0; run < 4; run++) {
    tcomp_pool *before = tcomp_pool_enter(pool);
    for (int i = 0; i < LOOPS; i++) launch(i % 5 == 0 ? i % CHUNKS : -1, i % 7 * 20, i % 11 == 0);
    tcomp_pool_leave(pool, before);
    if (run == 1) usleep(2000); /* long enough for all workers to sleep */
    if (run == 2) tcomp_pool_set_threads(pool, 3);
  }
  CHECK(tcomp_pool_threads(pool) == 3)
  tcomp_pool_destroy(pool);
  return NULL;
}

int main(void) {
  for (int32_t threads = 1; threads <= 5; threads++) use_a_pool(&threads);
  int32_t counts[] = {1, 2, 4};
  pthread_t users[3];
  for (int i = 0; i < 3; i++) pthread_create(&users[i], NULL, use_a_pool, &counts[i]);
  for (int i = 0; i < 3; i++) pthread_join(users[i], NULL);
  puts("fine");
  return 0;
}
