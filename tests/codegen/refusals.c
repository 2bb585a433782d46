/* A system that refuses memory or threads. The functions below stand before libc's for the library too. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/resource.h>

#include "check.h"
#include "tcomp.h"

static atomic_int pieces_left = 1 << 30, threads_left = 1 << 30; /* until the refusal, which happens once */
static atomic_int every; /* 1: not once, but from then on */

static int refuses(atomic_int *left) {
  int before = atomic_fetch_sub(left, 1);
  return before == 0 || (before < 0 && atomic_load(&every));
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void *malloc(size_t bytes) { return refuses(&pieces_left) ? NULL : REAL(malloc)(bytes); }

int posix_memalign(void **memory, size_t alignment, size_t bytes) {
  return refuses(&pieces_left) ? ENOMEM : REAL(posix_memalign)(memory, alignment, bytes);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *),
                   void *argument) {
  return refuses(&threads_left) ? EAGAIN : REAL(pthread_create)(thread, attributes, start, argument);
}

static tcomp_buffer input, output;
static void *expected;

static tcomp_status run(tcomp_context *context) {
  memset(output.data, 0, output.bytes);
  tcomp_status status = tcomp_run(context, &input, 1, &output, 1);
  if (status == TCOMP_OK) CHECK(memcmp(output.data, expected, output.bytes) == 0)
  return status;
}

/* The first, the second, ... piece of memory that is asked for is refused, until none is missing. */
static void memory(const tcomp_options *options) {
  int create_failures = 0, run_failures = 0;
  for (int allowed = 0;; allowed++) {
    tcomp_context *context;
    atomic_store(&pieces_left, allowed);
    tcomp_status status = tcomp_create(options, &context);
    if (status != TCOMP_OK) {
      CHECK(status == TCOMP_ERROR_MEMORY && context == NULL)
      SAYS(NULL, "out of memory")
      create_failures++;
      continue;
    }
    status = run(context);
    int was_refused = atomic_load(&pieces_left) < 0;
    atomic_store(&pieces_left, 1 << 30);
    if (status != TCOMP_OK) {
      CHECK(status == TCOMP_ERROR_RUN && was_refused)
      if (strstr(tcomp_error(context), "Cannot allocate memory") == NULL) /* for a thread, that is */
        SAYS(context, "no memory for its workspace")
      run_failures++;
      CHECK(run(context) == TCOMP_OK)
    }
    tcomp_destroy(context);
    if (!was_refused) break;
  }
  CHECK(create_failures >= 2 && run_failures >= 1)
}

/* Four threads are an error where there are fewer; the default number is what there are. */
static void threads(int allowed, const char *text) {
  tcomp_options options = {.struct_bytes = sizeof options, .threads = 4};
  tcomp_context *context;
  CHECK(tcomp_create(&options, &context) == TCOMP_OK && tcomp_threads(context) == 4)
  atomic_store(&every, 1);
  for (int i = 0; i < 2; i++) {
    atomic_store(&threads_left, i == 0 ? allowed : 0);
    CHECK(run(context) == TCOMP_ERROR_RUN && tcomp_threads(context) == 4)
    SAYS(context, text)
    SAYS(context, "tcomp_set_threads(context, 0)")
  }
  atomic_store(&threads_left, 0);
  CHECK(tcomp_set_threads(context, 0) == TCOMP_OK && run(context) == TCOMP_OK && tcomp_threads(context) == 1)
  CHECK(run(context) == TCOMP_OK)
  atomic_store(&threads_left, 1 << 30);
  CHECK(tcomp_set_threads(context, 4) == TCOMP_OK && run(context) == TCOMP_OK && tcomp_threads(context) == 4)
  atomic_store(&every, 0);
  tcomp_destroy(context);
}

static void address_space(void) {
  struct rlimit before, none;
  tcomp_context *contexts[1000]; /* threads have set aside some address space of their own */
  tcomp_options options = {.struct_bytes = sizeof options, .threads = 1};
  CHECK(getrlimit(RLIMIT_AS, &before) == 0)
  none = before;
  none.rlim_cur = 1 << 20; /* less than what is in use: nothing more can be mapped */
  CHECK(setrlimit(RLIMIT_AS, &none) == 0)
  int made = 0;
  tcomp_status status = TCOMP_OK;
  while (made < 1000 && (status = tcomp_create(&options, &contexts[made])) == TCOMP_OK) made++;
  CHECK(setrlimit(RLIMIT_AS, &before) == 0)
  CHECK(status == TCOMP_ERROR_MEMORY)
  SAYS(NULL, "out of memory: the model needs")
  while (made > 0) tcomp_destroy(contexts[--made]);
}

int main(void) {
  input = (tcomp_buffer){calloc(1, tcomp_input(0)->bytes), tcomp_input(0)->bytes};
  output = (tcomp_buffer){calloc(1, tcomp_output(0)->bytes), tcomp_output(0)->bytes};
  expected = calloc(1, tcomp_output(0)->bytes);
  tcomp_options one = {.struct_bytes = sizeof one, .threads = 1}, three = one;
  three.threads = 3;
  tcomp_buffer first = {expected, output.bytes};
  tcomp_context *context;
  CHECK(tcomp_create(&one, &context) == TCOMP_OK && tcomp_run(context, &input, 1, &first, 1) == TCOMP_OK)
  tcomp_destroy(context);
  memory(&one);
  memory(&three);
  threads(0, "gives 1 of 4 threads: Resource temporarily unavailable");
  threads(2, "gives 3 of 4 threads: Resource temporarily unavailable");
  address_space();
  return 0;
}
