#ifndef TCOMP_BIONIC_UNISTD_H
#define TCOMP_BIONIC_UNISTD_H

#include "types.h"

#define _SC_PAGESIZE 0x27
#define _SC_NPROCESSORS_ONLN 0x61

long sysconf(int name);
pid_t getpid(void);
ssize_t read(int file, void *data, size_t bytes);
int close(int file);

#endif
