#ifndef TCOMP_BIONIC_SIGNAL_H
#define TCOMP_BIONIC_SIGNAL_H

#define SIG_BLOCK 0
#define SIG_SETMASK 2

typedef unsigned long sigset_t;

int sigfillset(sigset_t *set);
int pthread_sigmask(int how, const sigset_t *set, sigset_t *before);

#endif
