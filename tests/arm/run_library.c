/* Runs the library it is linked with: inputs from standard input one after the other, outputs to standard
 * output. Links to nothing but the library and libc, as an application on a board does. */
#include <stdio.h>
#include <stdlib.h>

#include "tcomp.h"

enum { MOST = 128 };

static tcomp_buffer buffer_for(const tcomp_tensor *tensor) {
  tcomp_buffer buffer = {malloc(tensor->bytes), tensor->bytes};
  if (buffer.data == NULL) exit(3);
  return buffer;
}

int main(int count, char **arguments) {
  int32_t inputs = tcomp_input_count(), outputs = tcomp_output_count();
  tcomp_buffer in[MOST], out[MOST];
  tcomp_options options = {.struct_bytes = sizeof options, .threads = count > 1 ? atoi(arguments[1]) : 1};
  options.weights_path = count > 2 && *arguments[2] != '\0' ? arguments[2] : NULL;
  options.variant = count > 3 ? arguments[3] : NULL;
  tcomp_context *context;
  if (inputs > MOST || outputs > MOST) return 3;
  if (tcomp_create(&options, &context) != TCOMP_OK) {
    fprintf(stderr, "%s\n", tcomp_error(NULL));
    return 1;
  }
  for (int32_t i = 0; i < inputs; i++) {
    in[i] = buffer_for(tcomp_input(i));
    if (fread(in[i].data, 1, in[i].bytes, stdin) != in[i].bytes) return 2;
  }
  for (int32_t i = 0; i < outputs; i++) out[i] = buffer_for(tcomp_output(i));
  if (tcomp_run(context, in, inputs, out, outputs) != TCOMP_OK) {
    fprintf(stderr, "%s\n", tcomp_error(context));
    return 1;
  }
  for (int32_t i = 0; i < outputs; i++) fwrite(out[i].data, 1, out[i].bytes, stdout);
  tcomp_destroy(context);
  return 0;
}
