#ifndef TCOMP_BIONIC_STAT_H
#define TCOMP_BIONIC_STAT_H

#include "../types.h"

/* As the kernel has it. */
#ifdef __LP64__
struct stat {
  unsigned long st_dev, st_ino;
  unsigned st_mode, st_nlink, st_uid, st_gid;
  unsigned long st_rdev, padding1;
  off_t st_size;
  int st_blksize, padding2;
  long st_blocks;
  struct timespec st_atim, st_mtim, st_ctim;
  unsigned unused[2];
};
_Static_assert(sizeof(struct stat) == 128 && offsetof(struct stat, st_size) == 48, "the kernel's layout");
#else
struct stat {
  unsigned long long st_dev;
  unsigned padding1, short_ino, st_mode, st_nlink, st_uid, st_gid;
  unsigned long long st_rdev;
  unsigned padding3[2];
  long long st_size;
  unsigned st_blksize, padding4;
  unsigned long long st_blocks;
  struct timespec st_atim, st_mtim, st_ctim;
  unsigned long long st_ino;
};
_Static_assert(sizeof(struct stat) == 104 && offsetof(struct stat, st_size) == 48, "the kernel's layout");
#endif

int fstat(int file, struct stat *status);

#endif
