/* Two libraries in one process, in several threads at once: linked in, where their tables of functions tell
 * them apart, and loaded once more, beside the first one's functions in the global scope. */
#include <dlfcn.h>
#include <pthread.h>

#include "chain.h"
#include "check.h"
#include "parallel.h"


typedef struct {
  const tcomp_api *api;
  tcomp_context *context; /* NULL: one for each run */
  void *expected;         /* NULL: the first run's */
} job;

static int runs;

static void fill(tcomp_buffer *buffers, const tcomp_tensor *(*tensor)(int32_t), int32_t count) {
  for (int32_t i = 0; i < count; i++) {
    buffers[i] = (tcomp_buffer){calloc(1, tensor(i)->bytes), tensor(i)->bytes};
    for (size_t k = 0; k < buffers[i].bytes / sizeof(float); k++)
      ((float *)buffers[i].data)[k] = (float)(k % 17) / 8 - 1;
  }
}

static void *run_often(void *argument) {
  job *j = argument;
  const tcomp_api *api = j->api;
  tcomp_buffer inputs[1], outputs[4];
  tcomp_options options = {.struct_bytes = sizeof options, .threads = 2};
  CHECK(api->input_count() == 1 && api->output_count() <= 4)
  fill(inputs, api->input, 1);
  fill(outputs, api->output, api->output_count());
  for (int run = 0; run < runs; run++) {
    tcomp_context *context = j->context;
    if (context == NULL) CHECK(api->create(&options, &context) == TCOMP_OK)
    CHECK(api->run(context, inputs, 1, outputs, api->output_count()) == TCOMP_OK)
    CHECK(api->run(context, inputs, 2, outputs, api->output_count()) == TCOMP_ERROR_ARGUMENT)
    if (j->context == NULL) api->destroy(context);
    if (j->expected == NULL) {
      j->expected = malloc(outputs[0].bytes);
      memcpy(j->expected, outputs[0].data, outputs[0].bytes);
    }
    CHECK(memcmp(outputs[0].data, j->expected, outputs[0].bytes) == 0)
  }
  for (int32_t i = 0; i < api->output_count(); i++) free(outputs[i].data);
  free(inputs[0].data);
  return NULL;
}

static const tcomp_api *load(const char *path, const char *name) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) fprintf(stderr, "%s\n", dlerror()), exit(1);
  const tcomp_api *(*table)(void) = (const tcomp_api *(*)(void))dlsym(library, name);
  const char *(*model_name)(void) = (const char *(*)(void))dlsym(library, "tcomp_model_name");
  CHECK(table != NULL && strcmp(model_name(), table()->model_name()) == 0)
  CHECK(table()->struct_bytes == sizeof(tcomp_api) && table()->abi_version() == TCOMP_ABI_VERSION)
  return table();
}

/* A context has no weights for another library, be it a copy of the same file. */
static void share_with_another_library(const tcomp_api *api, const tcomp_api *other) {
  tcomp_options options = {.struct_bytes = sizeof options};
  tcomp_context *context, *result;
  CHECK(other->create(NULL, &context) == TCOMP_OK)
  options.share_with = context;
  CHECK(api->create(&options, &result) == TCOMP_ERROR_ARGUMENT && result == NULL)
  CHECK(strstr(api->error(NULL), "share_with is no context of this library (chain)") != NULL)
  other->destroy(context);
}

int main(int count, char **arguments) {
  CHECK(count == 4)
  runs = atoi(arguments[1]);
  char **paths = arguments + 1;
  const tcomp_api *apis[] = {tcomp_api_chain(), tcomp_api_parallel(), load(paths[1], "tcomp_api_chain"),
                             load(paths[2], "tcomp_api_parallel")};
  CHECK(apis[0] != apis[2] && apis[1] != apis[3]) /* copies of the files: libraries of their own */
  CHECK(strcmp(apis[0]->model_name(), "chain") == 0 && strcmp(apis[1]->model_name(), "parallel") == 0)
  CHECK(apis[0]->input(0)->bytes == CHAIN_INPUT0_BYTES && apis[1]->input(0)->bytes == PARALLEL_INPUT0_BYTES)
  share_with_another_library(apis[0], apis[1]);
  share_with_another_library(apis[0], apis[2]);
  job jobs[8];
  pthread_t threads[8];
  for (int i = 0; i < 8; i++) {
    jobs[i] = (job){apis[i % 4], NULL, NULL};
    if (i >= 4) CHECK(apis[i % 4]->create(NULL, &jobs[i].context) == TCOMP_OK)
  }
  for (int i = 0; i < 8; i++) CHECK(pthread_create(&threads[i], NULL, run_often, &jobs[i]) == 0)
  for (int i = 0; i < 8; i++) pthread_join(threads[i], NULL);
  for (int i = 0; i < 8; i++) {
    const tcomp_api *api = jobs[i].api;
    CHECK(memcmp(jobs[i].expected, jobs[i % 2].expected, api->output(0)->bytes) == 0)
    api->destroy(jobs[i].context);
    if (i >= 2) free(jobs[i].expected);
  }
  free(jobs[0].expected);
  free(jobs[1].expected);
  return 0;
}
