/* Runs that are stopped by another thread or by a callback, on own threads, on the caller's and on one; the
 * context is as good as new afterwards, and no memory is lost. Takes a model with one input and one output. */
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "check.h"
#include "tcomp.h"


static tcomp_buffer input;
static void *expected;
static int runs;
static atomic_int live, looping;

static void *take(void *user, size_t bytes, size_t alignment) {
  (void)user;
  atomic_fetch_add(&live, 1);
  return aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}

static void give_back(void *user, void *memory) {
  (void)user;
  atomic_fetch_sub(&live, 1);
  free(memory);
}

static void one_after_the_other(void *user, int32_t count, void (*task)(void *, int32_t), void *data) {
  (void)user;
  for (int32_t i = 0; i < count; i++) task(data, i);
}

static tcomp_status run(tcomp_context *context) {
  void *output = malloc(tcomp_output(0)->bytes);
  tcomp_buffer buffer = {output, tcomp_output(0)->bytes};
  tcomp_status status = tcomp_run(context, &input, 1, &buffer, 1);
  if (status == TCOMP_OK) CHECK(memcmp(output, expected, buffer.bytes) == 0)
  if (status != TCOMP_OK) SAYS(context, "the run was cancelled at step")
  free(output);
  return status;
}

/* ---- by a callback, at each step in turn -------------------------------------------------------------- */

typedef struct {
  int asked, stop_at;
} countdown;

static int32_t count_down(void *user) {
  countdown *c = user;
  return c->asked++ == c->stop_at;
}

static void by_callback(tcomp_options options) {
  countdown count = {0, 0};
  tcomp_context *context;
  options.cancelled = count_down, options.cancelled_user = &count;
  CHECK(tcomp_create(&options, &context) == TCOMP_OK)
  for (int32_t step = 0; step < tcomp_step_count(); step++) {
    count = (countdown){0, step};
    CHECK(run(context) == TCOMP_CANCELLED)
    CHECK(count.asked == step + 1)
  }
  count = (countdown){0, 1 << 20};
  CHECK(run(context) == TCOMP_OK)
  CHECK(count.asked == tcomp_step_count())
  tcomp_destroy(context);
}

/* ---- by another thread, at any time ------------------------------------------------------------------- */

static void *cancel_often(void *context) {
  for (unsigned time = 0; atomic_load(&looping); time = (time + 37) % 2000) {
    CHECK(tcomp_cancel(context) == TCOMP_OK)
    usleep(time);
  }
  return NULL;
}

static int by_another_thread(const tcomp_options *options) {
  tcomp_context *context;
  pthread_t other;
  int counts[TCOMP_CANCELLED + 1] = {0};
  CHECK(tcomp_create(options, &context) == TCOMP_OK)
  CHECK(tcomp_cancel(context) == TCOMP_OK && run(context) == TCOMP_OK) /* there was no run to stop */
  int before = atomic_load(&live);
  atomic_store(&looping, 1);
  CHECK(pthread_create(&other, NULL, cancel_often, context) == 0)
  for (int i = 0; i < runs; i++) counts[run(context)]++;
  atomic_store(&looping, 0);
  pthread_join(other, NULL);
  CHECK(counts[TCOMP_OK] + counts[TCOMP_CANCELLED] == runs)
  CHECK(run(context) == TCOMP_OK)
  if (options->threads == 1) CHECK(atomic_load(&live) == before) /* the blocks of cancelled runs serve again */
  tcomp_destroy(context);
  CHECK(atomic_load(&live) == 0)
  return counts[TCOMP_CANCELLED];
}

int main(int count, char **arguments) {
  CHECK(count == 2)
  runs = atoi(arguments[1]);
  input = (tcomp_buffer){malloc(tcomp_input(0)->bytes), tcomp_input(0)->bytes};
  float *values = input.data;
  for (size_t i = 0; i < input.bytes / sizeof(float); i++) values[i] = (float)(i % 17) / 8 - 1;
  expected = malloc(tcomp_output(0)->bytes);
  tcomp_options one = {.struct_bytes = sizeof one, .threads = 1, .allocate = take, .release = give_back};
  tcomp_options three = one, callers = one;
  three.threads = callers.threads = 3;
  callers.parallel = one_after_the_other;
  tcomp_context *context;
  tcomp_buffer output = {expected, tcomp_output(0)->bytes};
  CHECK(tcomp_create(&one, &context) == TCOMP_OK && tcomp_run(context, &input, 1, &output, 1) == TCOMP_OK)
  tcomp_destroy(context);

  const tcomp_options *all[] = {&one, &three, &callers};
  for (int i = 0; i < 3; i++) by_callback(*all[i]);
  int cancelled = 0;
  for (int i = 0; i < 3; i++) cancelled += by_another_thread(all[i]);
  CHECK(cancelled > 0 || runs < 10)
  printf("%d of %d runs cancelled\n", cancelled, 3 * runs);
  free(expected);
  free(input.data);
  return 0;
}
