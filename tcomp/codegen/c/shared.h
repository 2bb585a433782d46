/* What contexts share: the weights, and on a GPU the code too, which are there until the last of them lets go. */
#ifndef TCOMP_SHARED_H
#define TCOMP_SHARED_H

#include "model_info.h"

typedef struct tcomp_shared tcomp_shared;

/* Finds the weights that `options` name and puts them on the device, if there is one, for one context. On
 * failure `text` says why. */
tcomp_status tcomp_shared_create(const tcomp_options *options, tcomp_shared **result, char *text);

/* For one context more; from any thread while one has it. */
tcomp_shared *tcomp_shared_take(tcomp_shared *shared);

/* For one context less; from any thread. */
void tcomp_shared_release(tcomp_shared *shared);

const char *tcomp_shared_weights(const tcomp_shared *shared); /* in the CPU's memory */
const tcomp_placed *tcomp_shared_placed(const tcomp_shared *shared); /* NULL: the CPU */

#endif
