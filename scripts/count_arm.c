/* Runs the library it is linked with, as often as the last argument says, on inputs of the file that the first
 * names, one after the other; prints where it was loaded and what the magnitudes of the first output add up to,
 * if that is float32. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tcomp.h"

static tcomp_buffer buffer_for(const tcomp_tensor *tensor) {
  tcomp_buffer buffer = {calloc(1, tensor->bytes), tensor->bytes};
  if (buffer.data == NULL) exit(3);
  return buffer;
}

static double magnitudes(const tcomp_tensor *tensor, const float *values) {
  double total = 0;
  if (tensor->dtype != TCOMP_FLOAT32) return 0;
  for (size_t i = 0; i < tensor->bytes / sizeof *values; i++) total += fabs(values[i]);
  return total;
}

int main(int count, char **arguments) {
  int32_t inputs = tcomp_input_count(), outputs = tcomp_output_count();
  tcomp_buffer in[16], out[16];
  tcomp_options options = {.struct_bytes = sizeof options, .threads = 1};
  tcomp_context *context;
  Dl_info info;
  FILE *file = count == 3 ? fopen(arguments[1], "rb") : NULL;
  if (file == NULL || inputs > 16 || outputs > 16) return 3;
  if (tcomp_create(&options, &context) != TCOMP_OK) {
    fprintf(stderr, "%s\n", tcomp_error(NULL));
    return 1;
  }
  for (int32_t i = 0; i < inputs; i++) {
    in[i] = buffer_for(tcomp_input(i));
    if (fread(in[i].data, 1, in[i].bytes, file) != in[i].bytes) return 2;
  }
  for (int32_t i = 0; i < outputs; i++) out[i] = buffer_for(tcomp_output(i));
  for (int run = 0; run < atoi(arguments[2]); run++) {
    if (tcomp_run(context, in, inputs, out, outputs) == TCOMP_OK) continue;
    fprintf(stderr, "%s\n", tcomp_error(context));
    return 1;
  }
  if (!dladdr((void *)tcomp_create, &info)) return 3;
  printf("%lx %.9g\n", (unsigned long)info.dli_fbase, magnitudes(tcomp_output(0), out[0].data));
  return 0;
}
