/* Weights: in the library, in a file that is mapped, or in the caller's memory; and who has them. */
#define _GNU_SOURCE
#include "shared.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blake2b.h"
#include "workspace.h"

struct tcomp_shared {
  atomic_int contexts; /* that have it */
  const char *weights;
  void *mapped;         /* the file with the weights, or NULL */
  tcomp_placed *placed; /* NULL: the CPU */
};

/* Reads all weights once. Pages of a file stay in memory for the kernels. */
static tcomp_status check_content(const tcomp_shared *shared, const tcomp_options *options, const char *where,
                                  char *text) {
  if (options->trust_weights) return TCOMP_OK;
  unsigned char digest[TCOMP_DIGEST_BYTES];
  tcomp_blake2b(shared->weights, tcomp_model.weights_bytes, digest);
  if (memcmp(digest, tcomp_model.weights_digest, sizeof digest) != 0)
    return tcomp_fail(text, TCOMP_ERROR_WEIGHTS, "weights %s are not those of this model; compile it again",
                      where);
  return TCOMP_OK;
}

static tcomp_status map_weights(tcomp_shared *shared, const tcomp_options *options, char *text) {
  size_t expected = tcomp_model.weights_bytes;
  const char *path = options->weights_path;
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0)
    return tcomp_fail(text, TCOMP_ERROR_WEIGHTS, "cannot open weights %s: %s", path, strerror(errno));
  struct stat status;
  size_t found = fstat(file, &status) == 0 ? (size_t)status.st_size : 0;
  if (found != expected) {
    close(file);
    return tcomp_fail(text, TCOMP_ERROR_WEIGHTS, "weights %s have %zu bytes; this model's have %zu", path,
                      found, expected);
  }
  void *memory = mmap(NULL, expected, PROT_READ, MAP_PRIVATE, file, 0);
  int reason = errno;
  close(file);
  if (memory == MAP_FAILED)
    return tcomp_fail(text, TCOMP_ERROR_WEIGHTS, "cannot map weights %s: %s", path, strerror(reason));
  shared->mapped = memory;
  shared->weights = memory;
  return check_content(shared, options, path, text);
}

static tcomp_status find_weights(tcomp_shared *shared, const tcomp_options *options, char *text) {
  if (tcomp_weights_embedded()) {
    shared->weights = tcomp_model.weights;
    return TCOMP_OK;
  }
  if (options->weights != NULL) {
    if (options->weights_bytes != tcomp_model.weights_bytes ||
        (uintptr_t)options->weights % TCOMP_ALIGNMENT != 0)
      return tcomp_fail(text, TCOMP_ERROR_WEIGHTS,
                        "weights in memory have %zu bytes at %p; they must have %zu, at a multiple of %d",
                        options->weights_bytes, options->weights, tcomp_model.weights_bytes, TCOMP_ALIGNMENT);
    shared->weights = options->weights;
    return check_content(shared, options, "in memory", text);
  }
  if (options->weights_path == NULL)
    return tcomp_fail(text, TCOMP_ERROR_WEIGHTS,
                      "this model has separate weights; give weights_path or weights in tcomp_options");
  return map_weights(shared, options, text);
}

tcomp_status tcomp_shared_create(const tcomp_options *options, tcomp_shared **result, char *text) {
  tcomp_shared *shared = calloc(1, sizeof *shared);
  if (shared == NULL) return tcomp_fail(text, TCOMP_ERROR_MEMORY, "out of memory");
  atomic_init(&shared->contexts, 1);
  tcomp_status status = find_weights(shared, options, text);
  if (status == TCOMP_OK && tcomp_model.backend != NULL)
    status = tcomp_model.backend->place(options, shared->weights, &shared->placed, text);
  if (status == TCOMP_OK)
    *result = shared;
  else
    tcomp_shared_release(shared);
  return status;
}

tcomp_shared *tcomp_shared_take(tcomp_shared *shared) {
  atomic_fetch_add_explicit(&shared->contexts, 1, memory_order_relaxed);
  return shared;
}

void tcomp_shared_release(tcomp_shared *shared) {
  /* The last one sees all that the others did to it before they let go. */
  if (atomic_fetch_sub_explicit(&shared->contexts, 1, memory_order_acq_rel) > 1) return;
  if (shared->placed != NULL) tcomp_model.backend->remove(shared->placed);
  if (shared->mapped != NULL) munmap(shared->mapped, tcomp_model.weights_bytes);
  free(shared);
}

const char *tcomp_shared_weights(const tcomp_shared *shared) { return shared->weights; }
const tcomp_placed *tcomp_shared_placed(const tcomp_shared *shared) { return shared->placed; }
