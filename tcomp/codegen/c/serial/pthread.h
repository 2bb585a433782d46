/* In place of the system's, for libraries without threads: locks do nothing, and no thread can be started. */
#ifndef TCOMP_SERIAL_PTHREAD_H
#define TCOMP_SERIAL_PTHREAD_H

/* These may declare types and functions of the same names. */
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#if __has_include(<sys/types.h>)
#include <sys/types.h>
#endif

typedef char tcomp_serial;

#define pthread_t tcomp_serial
#define pthread_mutex_t tcomp_serial
#define pthread_cond_t tcomp_serial
#define pthread_mutex_init(mutex, attributes) ((void)(mutex))
#define pthread_mutex_destroy(mutex) ((void)(mutex))
#define pthread_mutex_lock(mutex) ((void)(mutex))
#define pthread_mutex_unlock(mutex) ((void)(mutex))
#define pthread_cond_init(condition, attributes) ((void)(condition))
#define pthread_cond_destroy(condition) ((void)(condition))
#define pthread_cond_wait(condition, mutex) ((void)(condition))
#define pthread_cond_signal(condition) ((void)(condition))
#define pthread_cond_broadcast(condition) ((void)(condition))
#define pthread_create(thread, attributes, start, argument) ((void)(start), -1)
#define pthread_join(thread, result) ((void)(thread))
#define pthread_sigmask(how, set, before) ((void)(set), (void)(before))

#endif
