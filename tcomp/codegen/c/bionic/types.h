/* Types of Android's C library, for its 32 and 64-bit ABIs on ARM.
 *
 * These headers declare what the runtime uses, so that it compiles for Android without an NDK. Sizes, layouts
 * and constants are part of Android's stable ABI (API 24). */
#ifndef TCOMP_BIONIC_TYPES_H
#define TCOMP_BIONIC_TYPES_H

#include <stddef.h>
#include <stdint.h>

typedef long off_t, ssize_t, time_t;
typedef int clockid_t, pid_t, pthread_key_t;
typedef long pthread_t;

struct timespec {
  time_t tv_sec;
  long tv_nsec;
};

#endif
