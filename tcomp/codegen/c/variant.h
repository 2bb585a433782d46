/* Which of the library's variants a context runs. */
#ifndef TCOMP_VARIANT_H
#define TCOMP_VARIANT_H

#include "model_info.h"

/* Finds the variant that `options` name, or, when they name none, the best one for the CPUs that they
 * choose. On failure `text`, of `text_bytes`, says why. */
tcomp_status tcomp_choose_variant(const tcomp_options *options, const tcomp_variant_info **result, char *text,
                                  size_t text_bytes);

#endif
