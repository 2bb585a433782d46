/* Which of the library's variants a context runs. */
#ifndef TCOMP_VARIANT_H
#define TCOMP_VARIANT_H

#include "model_info.h"

/* Finds the variant called `name`, or, when that is NULL, the best one for this CPU. On failure `text`, of
 * `text_bytes`, says why. */
tcomp_status tcomp_choose_variant(const char *name, const tcomp_variant_info **result, char *text,
                                  size_t text_bytes);

#endif
