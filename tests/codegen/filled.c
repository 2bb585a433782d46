/* Runs a model in memory that was filled with a word before: the first argument, in hexadecimal, or not filled at
 * all without one. Inputs come from standard input, outputs go to standard output.
 */
#include "check.h"
#include "tcomp.h"

static tcomp_buffer inputs[16], outputs[16];
static const char *word;

static void *take(void *user, size_t bytes, size_t alignment) {
  (void)user;
  size_t size = (bytes + alignment - 1) / alignment * alignment;
  uint32_t *memory = aligned_alloc(alignment, size), pattern = word != NULL ? strtoul(word, NULL, 16) : 0;
  for (size_t i = 0; word != NULL && memory != NULL && i < size / sizeof pattern; i++) memory[i] = pattern;
  return memory;
}

static void give_back(void *user, void *memory) {
  (void)user;
  free(memory);
}

static void allocate(tcomp_buffer *buffers, const tcomp_tensor *(*tensor)(int32_t), int32_t count) {
  CHECK(count <= 16)
  for (int32_t i = 0; i < count; i++) buffers[i] = (tcomp_buffer){malloc(tensor(i)->bytes), tensor(i)->bytes};
}

int main(int count, char **arguments) {
  tcomp_context *context;
  tcomp_options options = {.struct_bytes = sizeof options, .threads = 1, .allocate = take, .release = give_back};
  word = count > 1 ? arguments[1] : NULL;
  allocate(inputs, tcomp_input, tcomp_input_count());
  allocate(outputs, tcomp_output, tcomp_output_count());
  for (int32_t i = 0; i < tcomp_input_count(); i++)
    CHECK(fread(inputs[i].data, 1, inputs[i].bytes, stdin) == inputs[i].bytes)
  CHECK(tcomp_create(&options, &context) == TCOMP_OK)
  CHECK(tcomp_run(context, inputs, tcomp_input_count(), outputs, tcomp_output_count()) == TCOMP_OK)
  for (int32_t i = 0; i < tcomp_output_count(); i++)
    CHECK(fwrite(outputs[i].data, 1, outputs[i].bytes, stdout) == outputs[i].bytes)
  tcomp_destroy(context);
  for (int32_t i = 0; i < tcomp_input_count(); i++) free(inputs[i].data);
  for (int32_t i = 0; i < tcomp_output_count(); i++) free(outputs[i].data);
  return 0;
}
