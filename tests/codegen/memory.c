/* How much memory a model takes. Prints in kilobytes: what its allocations add up to, what the runs that the
 * first argument counts add to the resident set after the first ones, and its peak above what it was before the
 * library was used.
 */
#include <malloc.h>

#include "check.h"
#include "tcomp.h"

#define FIRST_RUNS 50 /* until each thread has had work */

static tcomp_buffer inputs[16], outputs[16];
static size_t allocated;

static void *take(void *user, size_t bytes, size_t alignment) {
  (void)user;
  void *memory = aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  allocated += malloc_usable_size(memory);
  return memory;
}

static void give_back(void *user, void *memory) {
  (void)user;
  allocated -= malloc_usable_size(memory);
  free(memory);
}

static long kilobytes(const char *field) {
  char line[256];
  long found = -1;
  FILE *status = fopen("/proc/self/status", "r");
  while (status != NULL && fgets(line, sizeof line, status) != NULL)
    if (strncmp(line, field, strlen(field)) == 0) found = atol(line + strlen(field) + 1);
  if (status != NULL) fclose(status);
  return found;
}

static void fill(tcomp_buffer *buffers, const tcomp_tensor *(*tensor)(int32_t), int32_t count) {
  CHECK(count <= 16)
  for (int32_t i = 0; i < count; i++) {
    buffers[i] = (tcomp_buffer){malloc(tensor(i)->bytes), tensor(i)->bytes};
    memset(buffers[i].data, 0, buffers[i].bytes);
  }
}

static void run(tcomp_context *context, int times) {
  while (times-- > 0)
    CHECK(tcomp_run(context, inputs, tcomp_input_count(), outputs, tcomp_output_count()) == TCOMP_OK)
}

int main(int count, char **arguments) {
  tcomp_context *context;
  tcomp_options options = {.struct_bytes = sizeof options, .threads = 1};
  options.weights_path = count > 2 ? arguments[2] : NULL;
  fill(inputs, tcomp_input, tcomp_input_count());
  fill(outputs, tcomp_output, tcomp_output_count());
  long before = kilobytes("VmRSS");
  CHECK(tcomp_create(&options, &context) == TCOMP_OK)
  run(context, FIRST_RUNS);
  long warm = kilobytes("VmRSS");
  run(context, atoi(arguments[1]));
  long growth = kilobytes("VmRSS") - warm, peak = kilobytes("VmHWM") - before;
  tcomp_destroy(context);

  options.allocate = take, options.release = give_back;
  CHECK(tcomp_create(&options, &context) == TCOMP_OK)
  run(context, 2);
  printf("%zu %ld %ld\n", allocated / 1024, growth, peak);
  tcomp_destroy(context);
  CHECK(allocated == 0)
  for (int32_t i = 0; i < tcomp_input_count(); i++) free(inputs[i].data);
  for (int32_t i = 0; i < tcomp_output_count(); i++) free(outputs[i].data);
  return 0;
}
