/* A model with its weights, an input and the outputs it must give, in one program for any Linux or Android
 * shell: checks the numbers first, then times runs. `tcomp bench --static` links it. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_case.h"
#include "clock.h"
#include "tcomp.h"

#define ALIGNMENT 64

enum { RIGHT = 0, WRONG = 1, FAILED = 2 };

typedef struct {
  long runs, warmup, threads;
  int json;
} settings;

static int usage(FILE *stream, const char *program, int status) {
  fprintf(stream,
          "usage: %s [--runs N] [--warmup N] [--threads N] [--json]\n"
          "Runs the model %s, compiled for %s, on the input in this file; compares the outputs with those\n"
          "in this file, then prints seconds of a run. Exit status: 0; 1 when outputs are wrong; 2 when it\n"
          "cannot run.\n"
          "  --runs N     timed runs (default 20)\n"
          "  --warmup N   runs before them (default 3)\n"
          "  --threads N  threads of a run; 0: all CPUs (default %d)\n"
          "  --json       print one JSON object\n",
          program, tcomp_model_name(), tcomp_target(), tcomp_case.threads);
  return status;
}

static int fail(const char *what, const char *which) {
  fprintf(stderr, "%s%s\n", what, which);
  return FAILED;
}

/* ---- numbers ------------------------------------------------------------------------------------- */

static double bfloat(uint16_t bits) {
  uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

static double half(uint16_t bits) {
  int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double size = exponent == 0    ? ldexp(fraction, -24)
                : exponent == 31 ? (fraction ? NAN : INFINITY)
                                 : ldexp(fraction + 1024, exponent - 25);
  return bits & 0x8000 ? -size : size;
}

/* Its bits are the upper ones of a half-precision number. */
static double float8_e5m2(uint8_t bits) { return half((uint16_t)(bits << 8)); }

static double float8_e4m3fn(uint8_t bits) {
  int exponent = bits >> 3 & 15, fraction = bits & 7;
  double size = exponent == 0         ? ldexp(fraction, -9)
                : (bits & 127) == 127 ? NAN
                                      : ldexp(fraction + 8, exponent - 10);
  return bits & 0x80 ? -size : size;
}

#define ELEMENT(type) ((double)((const type *)data)[index])

static double element(tcomp_dtype dtype, const void *data, size_t index) {
  switch (dtype) {
    case TCOMP_FLOAT16: return half(((const uint16_t *)data)[index]);
    case TCOMP_BFLOAT16: return bfloat(((const uint16_t *)data)[index]);
    case TCOMP_FLOAT32: return ELEMENT(float);
    case TCOMP_FLOAT64: return ELEMENT(double);
    case TCOMP_INT8: return ELEMENT(int8_t);
    case TCOMP_INT16: return ELEMENT(int16_t);
    case TCOMP_INT32: return ELEMENT(int32_t);
    case TCOMP_INT64: return ELEMENT(int64_t);
    case TCOMP_UINT8:
    case TCOMP_BOOL: return ELEMENT(uint8_t);
    case TCOMP_UINT16: return ELEMENT(uint16_t);
    case TCOMP_UINT32: return ELEMENT(uint32_t);
    case TCOMP_UINT64: return ELEMENT(uint64_t);
    case TCOMP_FLOAT8_E4M3FN: return float8_e4m3fn(((const uint8_t *)data)[index]);
    case TCOMP_FLOAT8_E5M2: return float8_e5m2(((const uint8_t *)data)[index]);
  }
  return NAN;
}

static int is_float8(tcomp_dtype dtype) { return dtype >= TCOMP_FLOAT8_E4M3FN; }
static int is_float(tcomp_dtype dtype) { return dtype <= TCOMP_FLOAT64 || is_float8(dtype); }

/* The largest error of an output as a multiple of what is allowed: above 1 is wrong. */
static double excess(const tcomp_tensor *tensor, const void *found, const void *expected) {
  if (!is_float(tensor->dtype)) return memcmp(found, expected, tensor->bytes) == 0 ? 0 : INFINITY;
  size_t width = tensor->dtype == TCOMP_FLOAT64   ? 8
                 : tensor->dtype == TCOMP_FLOAT32 ? 4
                 : is_float8(tensor->dtype)       ? 1
                                                  : 2;
  double scale = 0, worst = 0;
  for (size_t i = 0; i < tensor->bytes / width; i++) {
    double want = element(tensor->dtype, expected, i), have = element(tensor->dtype, found, i);
    if (isfinite(want)) scale = fmax(scale, fabs(want));
    if (want == have || (isnan(want) && isnan(have))) continue;
    double error = fabs(want - have);
    if (!isfinite(error)) return INFINITY;
    worst = fmax(worst, error);
  }
  return worst / (tcomp_case.absolute + tcomp_case.relative * scale);
}

/* ---- times --------------------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* The value below which `part` of sorted values lie. */
static double quantile(const double *sorted, long count, double part) {
  double position = part * (double)(count - 1);
  long below = (long)position, above = below + 1 < count ? below + 1 : below;
  return sorted[below] + (position - (double)below) * (sorted[above] - sorted[below]);
}

static void print_string(const char *text) {
  putchar('"');
  for (; *text; text++) {
    if (*text == '"' || *text == '\\' || (unsigned char)*text < 32)
      printf("\\u%04x", (unsigned char)*text);
    else
      putchar(*text);
  }
  putchar('"');
}

static void report(const settings *chosen, int threads, double error, double *seconds) {
  long count = chosen->runs;
  if (chosen->json) {
    fputs("{\"model\": ", stdout);
    print_string(tcomp_model_name());
    fputs(", \"target\": ", stdout);
    print_string(tcomp_target());
    printf(", \"threads\": %d, \"excess\": %.6g, \"times\": [", threads, error);
    for (long i = 0; i < count; i++) printf("%s%.9g", i ? ", " : "", seconds[i]);
  }
  qsort(seconds, (size_t)count, sizeof *seconds, ascending);
  double median = quantile(seconds, count, 0.5);
  double spread = (quantile(seconds, count, 0.75) - quantile(seconds, count, 0.25)) / median;
  if (chosen->json) {
    printf("], \"min\": %.9g, \"median\": %.9g, \"spread\": %.4g}\n", seconds[0], median, spread);
    return;
  }
  printf("model    %s\ntarget   %s\nthreads  %d\n", tcomp_model_name(), tcomp_target(), threads);
  printf("numbers  right, with %.3g of the allowed error\n", error);
  printf("min      %.4f ms\nmedian   %.4f ms\n", seconds[0] * 1e3, median * 1e3);
  printf("spread   %.1f %% between the quartiles of %ld runs\n", spread * 100, count);
}

/* ---- the program --------------------------------------------------------------------------------- */

static int parse(int count, char **arguments, settings *chosen) {
  for (int i = 1; i < count; i++) {
    const char *name = arguments[i];
    long least = 0, *number = NULL;
    if (strcmp(name, "--json") == 0) {
      chosen->json = 1;
      continue;
    }
    if (strcmp(name, "--runs") == 0) number = &chosen->runs, least = 1;
    if (strcmp(name, "--warmup") == 0) number = &chosen->warmup;
    if (strcmp(name, "--threads") == 0) number = &chosen->threads;
    if (number == NULL || i + 1 == count) return usage(stderr, arguments[0], FAILED);
    char *end;
    *number = strtol(arguments[++i], &end, 10);
    if (*end != '\0' || end == arguments[i] || *number < least || *number > 1000000)
      return fail("not a number of the right size: ", arguments[i]);
  }
  return 0;
}

static int run(tcomp_context *context, const settings *chosen) {
  int32_t inputs = tcomp_input_count(), outputs = tcomp_output_count();
  tcomp_buffer *in = calloc((size_t)inputs + 1, sizeof *in), *out = calloc((size_t)outputs + 1, sizeof *out);
  double *seconds = malloc(sizeof *seconds * (size_t)chosen->runs);
  if (in == NULL || out == NULL || seconds == NULL) return fail("out of memory", "");
  for (int32_t i = 0; i < inputs; i++)
    in[i] = (tcomp_buffer){(void *)tcomp_case.inputs[i], tcomp_input(i)->bytes};
  for (int32_t i = 0; i < outputs; i++) {
    out[i].bytes = tcomp_output(i)->bytes;
    if (posix_memalign(&out[i].data, ALIGNMENT, out[i].bytes + 1) != 0) return fail("out of memory", "");
  }
  double error = 0;
  for (long i = -1 - chosen->warmup; i < chosen->runs; i++) {
    uint64_t begin = tcomp_now();
    if (tcomp_run(context, in, inputs, out, outputs) != TCOMP_OK) return fail(tcomp_error(context), "");
    if (i >= 0) seconds[i] = (double)(tcomp_now() - begin) * 1e-9;
    if (i != -1 - chosen->warmup) continue;
    for (int32_t k = 0; k < outputs; k++) {
      double found = excess(tcomp_output(k), out[k].data, tcomp_case.expected[k]);
      error = fmax(error, found);
      if (found <= 1) continue;
      fprintf(stderr, "output %d (%s) is wrong: %.3g times the allowed error\n", k, tcomp_output(k)->name, found);
      return WRONG;
    }
  }
  report(chosen, tcomp_threads(context), error, seconds);
  return fflush(stdout) == 0 ? RIGHT : fail("cannot write the report", "");
}

int main(int count, char **arguments) {
  settings chosen = {.runs = 20, .warmup = 3, .threads = tcomp_case.threads};
  if (count == 2 && strcmp(arguments[1], "--help") == 0) return usage(stdout, arguments[0], 0);
  int status = parse(count, arguments, &chosen);
  if (status != 0) return status;
  tcomp_options options = {.struct_bytes = sizeof options, .threads = (int32_t)chosen.threads};
  tcomp_context *context;
  if (tcomp_create(&options, &context) != TCOMP_OK) return fail(tcomp_error(NULL), "");
  status = run(context, &chosen);
  tcomp_destroy(context);
  return status;
}
