#ifndef TCOMP_BIONIC_FCNTL_H
#define TCOMP_BIONIC_FCNTL_H

#define O_RDONLY 0
#define O_CLOEXEC 02000000

int open(const char *path, int flags, ...);

#endif
