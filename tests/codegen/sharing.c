/* Contexts that share weights: made of each other and destroyed by several threads at once, until none is left.
 * The first argument is how often; the second is the file with the weights, where they are separate. */
#include <pthread.h>

#include "check.h"
#include "tcomp.h"

#define THREADS 4

static int rounds;
static tcomp_buffer input;
static void *expected;
static pthread_barrier_t all_have_begun;

static void check_run(tcomp_context *context) {
  tcomp_buffer output = {malloc(tcomp_output(0)->bytes), tcomp_output(0)->bytes};
  CHECK(tcomp_run(context, &input, 1, &output, 1) == TCOMP_OK)
  CHECK(memcmp(output.data, expected, output.bytes) == 0)
  free(output.data);
}

static tcomp_context *another(const tcomp_context *context) {
  tcomp_options options = {.struct_bytes = sizeof options, .threads = 1, .share_with = context};
  tcomp_context *result;
  CHECK(tcomp_create(&options, &result) == TCOMP_OK)
  return result;
}

/* Each context is made of the one before it, which is destroyed while it runs no more or before it ever ran. */
static void *hand_on(void *first) {
  tcomp_context *context = another(first);
  int destroys_the_first = pthread_barrier_wait(&all_have_begun) == PTHREAD_BARRIER_SERIAL_THREAD;
  if (destroys_the_first) tcomp_destroy(first);
  for (int round = 0; round < rounds; round++) {
    if (round % 2 == 0) check_run(context);
    tcomp_context *next = another(context), *last = another(next);
    tcomp_destroy(context);
    check_run(next);
    tcomp_destroy(next);
    context = last;
  }
  tcomp_destroy(context);
  return NULL;
}

/* One thread makes contexts of one that runs in another. */
static void *run_often(void *context) {
  for (int round = 0; round < rounds; round++) check_run(context);
  return NULL;
}

static void refusals(tcomp_context *context) {
  tcomp_options options = {.struct_bytes = sizeof options, .share_with = context, .weights_path = "other.weights"};
  tcomp_context *result = context;
  CHECK(tcomp_create(&options, &result) == TCOMP_ERROR_ARGUMENT && result == NULL)
  SAYS(NULL, "tcomp_options has share_with, whose weights the context gets, and others; leave one out")
  options = (tcomp_options){.struct_bytes = sizeof options, .share_with = context, .variant = "z80"};
  CHECK(tcomp_create(&options, &result) == TCOMP_ERROR_ARGUMENT && result == NULL)
  SAYS(NULL, "tcomp_options.variant is z80")
}

int main(int count, char **arguments) {
  pthread_t threads[THREADS];
  CHECK(count >= 2)
  rounds = atoi(arguments[1]);
  input = (tcomp_buffer){malloc(tcomp_input(0)->bytes), tcomp_input(0)->bytes};
  for (size_t i = 0; i < input.bytes / sizeof(float); i++) ((float *)input.data)[i] = (float)(i % 17) / 8 - 1;
  expected = malloc(tcomp_output(0)->bytes);
  tcomp_buffer output = {expected, tcomp_output(0)->bytes};
  tcomp_options options = {.struct_bytes = sizeof options, .threads = 1};
  options.weights_path = count > 2 ? arguments[2] : NULL;
  tcomp_context *first;
  CHECK(tcomp_create(&options, &first) == TCOMP_OK)
  CHECK(tcomp_run(first, &input, 1, &output, 1) == TCOMP_OK)
  refusals(first);
  CHECK(pthread_create(&threads[0], NULL, run_often, first) == 0)
  for (int round = 0; round < rounds; round++) tcomp_destroy(another(first));
  pthread_join(threads[0], NULL);

  pthread_barrier_init(&all_have_begun, NULL, THREADS);
  for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, hand_on, first) == 0)
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  pthread_barrier_destroy(&all_have_begun);
  free(expected);
  free(input.data);
  return 0;
}
