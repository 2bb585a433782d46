#ifndef TCOMP_BLAKE2B_H
#define TCOMP_BLAKE2B_H

#include <stddef.h>

/* BLAKE2b (RFC 7693) with a 32-byte digest and no key, of one piece of memory. */
void tcomp_blake2b(const void *data, size_t bytes, unsigned char digest[32]);

#endif
