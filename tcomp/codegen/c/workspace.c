/* A list of blocks, each behind a header. There are never more than kernels held at once: where none is large
 * enough, the largest unused one makes room for it. The system's allocator would map and clear large blocks
 * for each kernel anew. */
#include "workspace.h"

#include <stdlib.h>

struct workspace_block {
  _Alignas(TCOMP_ALIGNMENT) workspace_block *next;
  size_t bytes;
  int used;
};

static void *allocate(const tcomp_options *options, size_t bytes) {
  if (options->allocate != NULL) return options->allocate(options->allocator_user, bytes, TCOMP_ALIGNMENT);
  void *memory = NULL;
  return posix_memalign(&memory, TCOMP_ALIGNMENT, bytes) == 0 ? memory : NULL;
}

static void release(const tcomp_options *options, void *memory) {
  if (options->release != NULL)
    options->release(options->allocator_user, memory);
  else
    free(memory);
}

void tcomp_workspace_init(tcomp_workspace *workspace, const tcomp_options *options) {
  workspace->options = options;
  workspace->blocks = NULL;
  pthread_mutex_init(&workspace->lock, NULL);
}

/* The smallest unused block of at least `bytes`; NULL: there is none. */
static workspace_block *find(const tcomp_workspace *workspace, size_t bytes) {
  workspace_block *best = NULL;
  for (workspace_block *b = workspace->blocks; b != NULL; b = b->next)
    if (!b->used && b->bytes >= bytes && (best == NULL || b->bytes < best->bytes)) best = b;
  return best;
}

static void drop_largest_unused(tcomp_workspace *workspace) {
  workspace_block **largest = NULL;
  for (workspace_block **at = &workspace->blocks; *at != NULL; at = &(*at)->next)
    if (!(*at)->used && (largest == NULL || (*at)->bytes > (*largest)->bytes)) largest = at;
  if (largest == NULL) return;
  workspace_block *dropped = *largest;
  *largest = dropped->next;
  release(workspace->options, dropped);
}

void *tcomp_workspace_take(tcomp_workspace *workspace, size_t bytes) {
  if (bytes > SIZE_MAX - sizeof(workspace_block)) return NULL;
  pthread_mutex_lock(&workspace->lock);
  workspace_block *block = find(workspace, bytes);
  if (block == NULL) {
    drop_largest_unused(workspace);
    block = allocate(workspace->options, sizeof *block + bytes);
    if (block != NULL) {
      *block = (workspace_block){workspace->blocks, bytes, 0};
      workspace->blocks = block;
    }
  }
  if (block != NULL) block->used = 1;
  pthread_mutex_unlock(&workspace->lock);
  return block == NULL ? NULL : block + 1;
}

void tcomp_workspace_give(tcomp_workspace *workspace, void *memory) {
  pthread_mutex_lock(&workspace->lock);
  ((workspace_block *)memory)[-1].used = 0;
  pthread_mutex_unlock(&workspace->lock);
}

void tcomp_workspace_give_all(tcomp_workspace *workspace) {
  for (workspace_block *b = workspace->blocks; b != NULL; b = b->next) b->used = 0;
}

void tcomp_workspace_destroy(tcomp_workspace *workspace) {
  while (workspace->blocks != NULL) {
    workspace_block *block = workspace->blocks;
    workspace->blocks = block->next;
    release(workspace->options, block);
  }
  pthread_mutex_destroy(&workspace->lock);
}
