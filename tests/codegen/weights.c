/* Creates a context with the weights file of the first argument: mapped, or with a second argument from memory,
 * from memory at an odd place, trusted, or by a context that shares them with one that was created while the file
 * was there. Prints the status and the text, and runs the model where there is one. */
#include "check.h"
#include "tcomp.h"

static void *read_file(const char *path, size_t *bytes) {
  FILE *file = fopen(path, "rb");
  CHECK(file != NULL)
  void *memory = aligned_alloc(64, (size_t)1 << 20);
  *bytes = fread(memory, 1, (size_t)1 << 20, file);
  fclose(file);
  return memory;
}

int main(int count, char **arguments) {
  const char *how = count > 2 ? arguments[2] : "";
  tcomp_options options = {.struct_bytes = sizeof options, .threads = 1};
  tcomp_context *context;
  void *memory = NULL;
  if (strcmp(how, "memory") == 0 || strcmp(how, "unaligned") == 0)
    options.weights = memory = read_file(arguments[1], &options.weights_bytes);
  else if (count > 1)
    options.weights_path = arguments[1];
  if (strcmp(how, "unaligned") == 0) options.weights = (const char *)memory + 4;
  options.trust_weights = strcmp(how, "trust") == 0;
  tcomp_status status = tcomp_create(&options, &context);
  if (status == TCOMP_OK && strcmp(how, "share") == 0) {
    tcomp_context *first = context;
    tcomp_options of_first = {.struct_bytes = sizeof of_first, .threads = 1, .share_with = first};
    CHECK(rename(arguments[1], arguments[3]) == 0) /* nothing is read anew */
    status = tcomp_create(&of_first, &context);
    tcomp_destroy(first);
  }
  printf("%d %s\n", status, tcomp_error(NULL));
  if (status == TCOMP_OK) {
    tcomp_buffer input = {calloc(1, tcomp_input(0)->bytes), tcomp_input(0)->bytes}, outputs[4];
    for (int32_t i = 0; i < 4; i++)
      outputs[i] = (tcomp_buffer){malloc(tcomp_output(i)->bytes), tcomp_output(i)->bytes};
    CHECK(tcomp_run(context, &input, 1, outputs, 4) == TCOMP_OK)
    for (int32_t i = 0; i < 4; i++) free(outputs[i].data);
    free(input.data);
  }
  tcomp_destroy(context);
  free(memory);
  return 0;
}
