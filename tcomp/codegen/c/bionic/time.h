#ifndef TCOMP_BIONIC_TIME_H
#define TCOMP_BIONIC_TIME_H

#include "types.h"

#define CLOCK_MONOTONIC 1

int clock_gettime(clockid_t clock, struct timespec *now);

#endif
