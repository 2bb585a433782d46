/* What the generated file of a kernel gives to cuda_trial.c, beside the tables of its launches. */
#ifndef TCOMP_CUDA_TRIAL_H
#define TCOMP_CUDA_TRIAL_H

#include "cuda_launch.h"

extern const int32_t tcomp_trial_parameters; /* inputs, scratch, outputs */
extern const uint64_t tcomp_trial_bytes[];   /* of each */
extern const uint64_t tcomp_trial_flush_bytes; /* that drive everything out of the second-level cache */

#endif
