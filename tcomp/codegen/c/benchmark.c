/* Runs one kernel on a device without anything of tcomp: checks come from its outputs, times from here.
 *
 *   benchmark CPUS THREADS SECONDS OUTPUTS NUMBER MINIMUM REPEATS ABANDON ARGUMENT...
 *
 * CPUS     mask of the CPUs to stay on, in hexadecimal; 0: any
 * THREADS  that share the kernel's parallel loops
 * SECONDS  after which the program ends itself by SIGALRM
 * OUTPUTS  file for the kernel's outputs after its first run, one behind the other; `-`: no such run
 * NUMBER   of runs in one sample; 0: as many samples as it takes to be steady; -1: no times
 * MINIMUM  seconds of all samples together, REPEATS samples, see `adaptive`
 * ABANDON  seconds of a run above which its time need not be precise
 * ARGUMENT of the kernel, in order: `BYTES:FILE` read from a file, `BYTES` scratch, `BYTES!` an output
 *
 * Prints where the kernel is, then a line `SECONDS RUNS` for each sample: seconds of one run, and how many
 * runs it is the mean of. The exit status is 0, or 1 with a line on standard error. */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "pool.h"

#define ALIGNMENT 64
#define MOST_SAMPLES 512
#define WARM_UP_SECONDS 0.02 /* a clock that rises with the load does so in this time */
#define STEADY_SPREAD 0.05

int32_t tcomp_call(void *const *arguments); /* generated: calls tcomp_kernel */
extern const char tcomp_kernel[];

static void **arguments;

uint64_t tcomp_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void fail(const char *what, const char *name) {
  fprintf(stderr, "%s%s: %s\n", what, name, errno ? strerror(errno) : "failed");
  exit(1);
}

static void run(void) {
  if (tcomp_call(arguments) != 0) fail("the kernel found no memory or threads", "");
}

/* Seconds of one run, the mean of `number` runs. */
static double sample(int64_t number) {
  uint64_t begin = tcomp_now();
  for (int64_t i = 0; i < number; i++) run();
  return (double)(tcomp_now() - begin) * 1e-9 / (double)number;
}

static void warm_up(void) {
  uint64_t begin = tcomp_now();
  do run();
  while ((double)(tcomp_now() - begin) * 1e-9 < WARM_UP_SECONDS);
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* The quartile `which` of 4 of sorted values, as Python's statistics.quantiles. */
static double quartile(const double *sorted, int count, int which) {
  int position = which * (count + 1), index = position / 4;
  index = index < 1 ? 1 : index > count - 1 ? count - 1 : index;
  double part = (position - index * 4) / 4.0;
  return sorted[index - 1] * (1 - part) + sorted[index] * part;
}

/* Enough runs for `minimum` seconds in `repeats` samples, and again, up to three times, while they spread. */
static void adaptive(double minimum, int repeats, double abandon) {
  double samples[MOST_SAMPLES], sorted[MOST_SAMPLES];
  int count = 2;
  for (int i = 0; i < count; i++) samples[i] = sample(1);
  double fastest = fmax(fmin(samples[0], samples[1]), 1e-9);
  int64_t number = (int64_t)fmax(1, ceil(minimum / (repeats * fastest)));
  if (fastest > abandon && (double)number * repeats * fastest > minimum / 4) {
    printf("%.9g 2\n", fastest);
    return;
  }
  if (number > 1) count = 0;
  for (int round = 1; round <= 3; round++) {
    for (; count < round * repeats; count++) samples[count] = sample(number);
    memcpy(sorted, samples, sizeof *samples * (size_t)count);
    qsort(sorted, (size_t)count, sizeof *sorted, ascending);
    double middle = quartile(sorted, count, 2);
    if (middle > abandon) break;
    if (quartile(sorted, count, 3) - quartile(sorted, count, 1) < STEADY_SPREAD * middle) break;
  }
  for (int i = 0; i < count; i++) printf("%.9g %" PRId64 "\n", samples[i], number);
}

static void read_file(const char *path, void *memory, size_t bytes) {
  FILE *file = fopen(path, "rb");
  if (file == NULL || fread(memory, 1, bytes, file) != bytes) fail("cannot read ", path);
  fclose(file);
}

static void write_outputs(const char *path, char *const *texts, int count) {
  FILE *file = fopen(path, "wb");
  if (file == NULL) fail("cannot write ", path);
  for (int i = 0; i < count; i++) {
    size_t bytes = strtoull(texts[i], NULL, 10);
    if (strchr(texts[i], '!') != NULL && fwrite(arguments[i], 1, bytes, file) != bytes) fail("cannot write ", path);
  }
  if (fclose(file) != 0) fail("cannot write ", path);
}

static void stay_on(unsigned long long cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int i = 0; i < 64; i++)
    if (cpus >> i & 1) CPU_SET(i, &set);
  if (cpus != 0 && sched_setaffinity(0, sizeof set, &set) != 0) fail("cannot stay on the CPUs asked for", "");
}

int main(int count, char **texts) {
  if (count < 9) {
    fputs("usage: see benchmark.c of tcomp\n", stderr);
    return 1;
  }
  stay_on(strtoull(texts[1], NULL, 16));
  alarm((unsigned)ceil(atof(texts[3])));
  tcomp_options options = {.struct_bytes = sizeof options, .threads = atoi(texts[2])};
  tcomp_pool *pool = tcomp_pool_create(&options);
  if (pool == NULL) fail("no memory", "");
  tcomp_pool_enter(pool);

  char **kernel_texts = texts + 9;
  int kernel_count = count - 9;
  arguments = calloc((size_t)kernel_count + 1, sizeof *arguments);
  if (arguments == NULL) fail("no memory", "");
  for (int i = 0; i < kernel_count; i++) {
    size_t bytes = strtoull(kernel_texts[i], NULL, 10);
    if (posix_memalign(&arguments[i], ALIGNMENT, bytes ? bytes : 1) != 0) fail("no memory", "");
    memset(arguments[i], 0, bytes);
    const char *path = strchr(kernel_texts[i], ':');
    if (path != NULL) read_file(path + 1, arguments[i], bytes);
  }

  int64_t number = atoll(texts[5]);
  int repeats = atoi(texts[7]);
  if (repeats < 1 || 3 * repeats > MOST_SAMPLES) fail("a wrong number of samples", "");
  printf("%p\n", (const void *)tcomp_kernel);
  if (strcmp(texts[4], "-") != 0) {
    run();
    write_outputs(texts[4], kernel_texts, kernel_count);
  }
  if (number >= 0) warm_up();
  if (number > 0) printf("%.9g %" PRId64 "\n", sample(number), number);
  if (number == 0) adaptive(atof(texts[6]), repeats, atof(texts[8]));
  return fflush(stdout) == 0 ? 0 : 1;
}
