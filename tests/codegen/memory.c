/* How much memory a model takes: prints kilobytes that were added to the resident set by the first runs and by
 * a thousand more, and its peak above what it was before the library was used. */
#include "check.h"
#include "tcomp.h"

static long kilobytes(const char *field) {
  char line[256];
  long found = -1;
  FILE *status = fopen("/proc/self/status", "r");
  while (status != NULL && fgets(line, sizeof line, status) != NULL)
    if (strncmp(line, field, strlen(field)) == 0) found = atol(line + strlen(field) + 1);
  if (status != NULL) fclose(status);
  return found;
}

int main(int count, char **arguments) {
  tcomp_buffer inputs[16], outputs[16];
  tcomp_context *context;
  tcomp_options options = {.struct_bytes = sizeof options, .threads = atoi(arguments[1])};
  options.weights_path = count > 3 ? arguments[3] : NULL;
  for (int32_t i = 0; i < tcomp_input_count(); i++)
    inputs[i] = (tcomp_buffer){calloc(1, tcomp_input(i)->bytes), tcomp_input(i)->bytes};
  for (int32_t i = 0; i < tcomp_output_count(); i++)
    outputs[i] = (tcomp_buffer){calloc(1, tcomp_output(i)->bytes), tcomp_output(i)->bytes};
  for (int32_t i = 0; i < tcomp_input_count(); i++) memset(inputs[i].data, 0, inputs[i].bytes);
  for (int32_t i = 0; i < tcomp_output_count(); i++) memset(outputs[i].data, 0, outputs[i].bytes);
  long before = kilobytes("VmRSS");
  CHECK(tcomp_create(&options, &context) == TCOMP_OK)
  for (int run = 0; run < 3; run++)
    CHECK(tcomp_run(context, inputs, tcomp_input_count(), outputs, tcomp_output_count()) == TCOMP_OK)
  long warm = kilobytes("VmRSS");
  for (int run = atoi(arguments[2]); run > 0; run--)
    CHECK(tcomp_run(context, inputs, tcomp_input_count(), outputs, tcomp_output_count()) == TCOMP_OK)
  printf("%ld %ld %ld\n", warm - before, kilobytes("VmRSS") - warm, kilobytes("VmHWM") - before);
  tcomp_destroy(context);
  for (int32_t i = 0; i < tcomp_input_count(); i++) free(inputs[i].data);
  for (int32_t i = 0; i < tcomp_output_count(); i++) free(outputs[i].data);
  return 0;
}
