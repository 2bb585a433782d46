/* Contexts with the caller's allocator, the caller's thread pool and threads of their own, all at once. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "check.h"
#include "tcomp.h"

static int runs;

#define HELPERS 3

/* ---- an allocator that counts, and refuses after `allowed` pieces -------------------------------------- */

typedef struct {
  atomic_int taken, live, allowed;
} counter;

static void *take(void *user, size_t bytes, size_t alignment) {
  counter *count = user;
  if (atomic_load(&count->taken) >= atomic_load(&count->allowed)) return NULL;
  atomic_fetch_add(&count->taken, 1);
  atomic_fetch_add(&count->live, 1);
  void *memory = aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  memset(memory, 0xff, bytes); /* nobody may count on zeros: these are NaNs */
  return memory;
}

static void give_back(void *user, void *memory) {
  counter *count = user;
  atomic_fetch_sub(&count->live, 1);
  free(memory);
}

/* ---- a thread pool: helpers take the next index until none is left --------------------------------------- */

typedef struct {
  void (*task)(void *data, int32_t index);
  void *data;
  int32_t count;
  atomic_int next;
} loop;

static void *help(void *argument) {
  loop *l = argument;
  for (int32_t i; (i = atomic_fetch_add(&l->next, 1)) < l->count;) l->task(l->data, i);
  return NULL;
}

static void parallel(void *user, int32_t count, void (*task)(void *, int32_t), void *data) {
  loop l = {task, data, count, 0};
  pthread_t helpers[HELPERS];
  atomic_fetch_add((atomic_int *)user, 1);
  for (int i = 0; i < HELPERS; i++) CHECK(pthread_create(&helpers[i], NULL, help, &l) == 0)
  help(&l);
  for (int i = 0; i < HELPERS; i++) pthread_join(helpers[i], NULL);
}

/* ---- runs ------------------------------------------------------------------------------------------------ */

static tcomp_buffer input;
static void *expected;

static tcomp_status run(tcomp_context *context, void *output) {
  tcomp_buffer buffer = {output, tcomp_output(0)->bytes};
  return tcomp_run(context, &input, 1, &buffer, 1);
}

static void *run_often(void *context) {
  void *output = malloc(tcomp_output(0)->bytes);
  for (int i = 0; i < runs; i++) {
    memset(output, 0, tcomp_output(0)->bytes);
    CHECK(run(context, output) == TCOMP_OK)
    CHECK(memcmp(output, expected, tcomp_output(0)->bytes) == 0)
  }
  free(output);
  return NULL;
}

static void all_at_once(tcomp_options *options, int kinds) {
  tcomp_context *contexts[4];
  pthread_t threads[8];
  for (int i = 0; i < kinds; i++) CHECK(tcomp_create(&options[i], &contexts[i]) == TCOMP_OK)
  /* Two threads for each context: the second waits for the first. */
  for (int i = 0; i < 2 * kinds; i++) CHECK(pthread_create(&threads[i], NULL, run_often, contexts[i / 2]) == 0)
  for (int i = 0; i < 2 * kinds; i++) pthread_join(threads[i], NULL);
  for (int i = 0; i < kinds; i++) tcomp_destroy(contexts[i]);
}

static void an_allocator_that_refuses(void) {
  void *output = malloc(tcomp_output(0)->bytes);
  counter count = {0, 0, 0};
  tcomp_options options = {.struct_bytes = sizeof options, .threads = 1, .allocate = take,
                           .release = give_back, .allocator_user = &count};
  tcomp_context *context = (tcomp_context *)&count;
  CHECK(tcomp_create(&options, &context) == TCOMP_ERROR_MEMORY && context == NULL)
  CHECK(strstr(tcomp_error(NULL), "out of memory") != NULL)
  count.allowed = 1; /* the arena, but no workspace */
  CHECK(tcomp_create(&options, &context) == TCOMP_OK)
  CHECK(run(context, output) == TCOMP_ERROR_RUN)
  CHECK(strstr(tcomp_error(context), "no memory for its workspace") != NULL)
  count.allowed = 1000; /* the context is as good as new */
  CHECK(run(context, output) == TCOMP_OK && memcmp(output, expected, tcomp_output(0)->bytes) == 0)
  tcomp_destroy(context);
  CHECK(count.live == 0)
  options.release = NULL;
  CHECK(tcomp_create(&options, &context) == TCOMP_ERROR_ARGUMENT)
  free(output);
}

int main(int count_of_arguments, char **arguments) {
  CHECK(count_of_arguments == 2)
  runs = atoi(arguments[1]);
  input = (tcomp_buffer){malloc(tcomp_input(0)->bytes), tcomp_input(0)->bytes};
  float *values = input.data;
  for (size_t i = 0; i < input.bytes / sizeof(float); i++) values[i] = (float)(i % 17) / 8 - 1;
  expected = malloc(tcomp_output(0)->bytes);
  tcomp_options one = {.struct_bytes = sizeof one, .threads = 1};
  tcomp_context *context;
  CHECK(tcomp_create(&one, &context) == TCOMP_OK && run(context, expected) == TCOMP_OK)
  tcomp_destroy(context);

  counter count = {0, 0, 1 << 20};
  atomic_int loops = 0;
  tcomp_options three = {.struct_bytes = sizeof three, .threads = 3};
  tcomp_options allocator = three, pool = three, both;
  allocator.allocate = take, allocator.release = give_back, allocator.allocator_user = &count;
  both = allocator;
  pool.parallel = both.parallel = parallel, pool.parallel_user = both.parallel_user = &loops;
  tcomp_options options[] = {three, allocator, pool, both};
  all_at_once(options, 4);
  CHECK(count.taken > 2 && count.live == 0 && loops >= 4 * runs)

  CHECK(tcomp_create(&pool, &context) == TCOMP_OK && tcomp_threads(context) == 3)
  CHECK(tcomp_set_threads(context, 2) == TCOMP_ERROR_ARGUMENT)
  CHECK(strstr(tcomp_error(context), "the caller's thread pool") != NULL)
  tcomp_destroy(context);
  an_allocator_that_refuses();
  printf("%d pieces of memory, %d loops\n", count.taken, loops);
  free(expected);
  free(input.data);
  return 0;
}
