#ifndef TCOMP_BIONIC_STDLIB_H
#define TCOMP_BIONIC_STDLIB_H

#include <stddef.h>

void *malloc(size_t bytes);
void *calloc(size_t count, size_t bytes);
void free(void *memory);
void abort(void) __attribute__((noreturn));
int posix_memalign(void **memory, size_t alignment, size_t bytes);
unsigned long long strtoull(const char *text, char **end, int base);

#endif
