/* Memory that kernels take while they run, kept from one run to the next. */
#ifndef TCOMP_WORKSPACE_H
#define TCOMP_WORKSPACE_H

#include <pthread.h>

#include "tcomp.h"

#define TCOMP_ALIGNMENT 64 /* of the arena, of weights and of workspaces */

typedef struct workspace_block workspace_block;

typedef struct {
  const tcomp_options *options; /* the allocator, and what to give it */
  pthread_mutex_t lock;
  workspace_block *blocks;
} tcomp_workspace;

void tcomp_workspace_init(tcomp_workspace *workspace, const tcomp_options *options);
void *tcomp_workspace_take(tcomp_workspace *workspace, size_t bytes); /* NULL: no memory */
void tcomp_workspace_give(tcomp_workspace *workspace, void *memory);
void tcomp_workspace_give_all(tcomp_workspace *workspace); /* after a run: kernels that failed kept theirs */
void tcomp_workspace_destroy(tcomp_workspace *workspace);

#endif
