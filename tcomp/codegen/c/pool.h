/* Threads and workspaces of one context, and the way TVM-generated kernels reach them. */
#ifndef TCOMP_POOL_H
#define TCOMP_POOL_H

#include "tcomp.h"

typedef struct tcomp_pool tcomp_pool;

/* NULL when there is no memory. Threads start with the first parallel kernel. */
tcomp_pool *tcomp_pool_create(const tcomp_options *options);
void tcomp_pool_destroy(tcomp_pool *pool);
void tcomp_pool_set_threads(tcomp_pool *pool, int32_t threads); /* 0: the default */
int32_t tcomp_pool_threads(const tcomp_pool *pool);

/* Why the run got no threads beyond `started`, an errno; 0: it did. */
int tcomp_pool_refusal(const tcomp_pool *pool, int32_t *started);

/* Makes the run that is under way fail soon; from any thread. */
void tcomp_pool_cancel(tcomp_pool *pool);
/* Whether the run is cancelled; asks the caller's `cancelled` too. For the thread that runs. */
int tcomp_pool_is_cancelled(tcomp_pool *pool);

/* Begins a run: `pool` serves the kernels that this thread calls. Returns the one before, for leave. */
tcomp_pool *tcomp_pool_enter(tcomp_pool *pool);
void tcomp_pool_leave(tcomp_pool *pool, tcomp_pool *before); /* takes back what failed kernels kept */

#endif
