#ifndef TCOMP_BIONIC_ERRNO_H
#define TCOMP_BIONIC_ERRNO_H

int *__errno(void);
#define errno (*__errno())
#define ENOMEM 12

#endif
