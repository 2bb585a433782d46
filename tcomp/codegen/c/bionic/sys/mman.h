#ifndef TCOMP_BIONIC_MMAN_H
#define TCOMP_BIONIC_MMAN_H

#include "../types.h"

#define PROT_READ 1
#define MAP_PRIVATE 2
#define MAP_FAILED ((void *)-1)
#define MADV_WILLNEED 3
#define MADV_HUGEPAGE 14

void *mmap(void *address, size_t bytes, int protection, int flags, int file, off_t offset);
int munmap(void *address, size_t bytes);
int madvise(void *address, size_t bytes, int advice);

#endif
