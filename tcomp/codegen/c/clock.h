/* Time, for profiles and for waits that end. */
#ifndef TCOMP_CLOCK_H
#define TCOMP_CLOCK_H

#include <stdint.h>

uint64_t tcomp_now(void); /* nanoseconds of a clock that never goes back */

#endif
