/* Android's C library as far as libraries of tcomp use it, made of glibc's: what has another name, another
 * layout or other constants there. The rest of libc.so is glibc itself, which this library needs. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* Defines `name` with Android's types, and finds glibc's function of that name as `real`. */
#define BIONIC(result, name, ...)                  \
  result bionic_##name(__VA_ARGS__) __asm__(#name); \
  result bionic_##name(__VA_ARGS__)
#define REAL(name) ((__typeof__(&name))dlsym(dlopen("libc.so.6", RTLD_NOW), #name))

/* Objects of Android may be smaller than glibc's, and are aligned to 4 bytes: they hold a pointer to one. */
static void **place(void *object) {
  return (void **)(((size_t)object + sizeof(void *) - 1) & -sizeof(void *));
}

static void *held(void *object, size_t bytes) {
  void *found = __atomic_load_n(place(object), __ATOMIC_ACQUIRE);
  if (found != NULL) return found;
  void *made = calloc(1, bytes); /* zeros are glibc's static initializers */
  if (__atomic_compare_exchange_n(place(object), &found, made, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
    return made;
  free(made);
  return found;
}
#define MUTEX(object) ((pthread_mutex_t *)held(object, sizeof(pthread_mutex_t)))
#define CONDITION(object) ((pthread_cond_t *)held(object, sizeof(pthread_cond_t)))

static int start(void *object) {
  *place(object) = NULL;
  return 0;
}

static int drop(void *object) {
  free(*place(object));
  return start(object);
}

BIONIC(int, pthread_mutex_init, void *mutex, const void *attributes) {
  return (void)attributes, start(mutex);
}
BIONIC(int, pthread_mutex_destroy, void *mutex) { return drop(mutex); }
BIONIC(int, pthread_mutex_lock, void *mutex) { return REAL(pthread_mutex_lock)(MUTEX(mutex)); }
BIONIC(int, pthread_mutex_unlock, void *mutex) { return REAL(pthread_mutex_unlock)(MUTEX(mutex)); }
BIONIC(int, pthread_cond_init, void *condition, const void *attributes) {
  return (void)attributes, start(condition);
}
BIONIC(int, pthread_cond_destroy, void *condition) { return drop(condition); }
BIONIC(int, pthread_cond_wait, void *condition, void *mutex) {
  return REAL(pthread_cond_wait)(CONDITION(condition), MUTEX(mutex));
}
BIONIC(int, pthread_cond_signal, void *condition) { return REAL(pthread_cond_signal)(CONDITION(condition)); }
BIONIC(int, pthread_cond_broadcast, void *condition) {
  return REAL(pthread_cond_broadcast)(CONDITION(condition));
}

BIONIC(int *, __errno, void) { return &errno; }

BIONIC(long, sysconf, int name) {
  if (name == 0x27) return REAL(sysconf)(_SC_PAGESIZE);
  if (name == 0x61) return REAL(sysconf)(_SC_NPROCESSORS_ONLN);
  abort();
}

BIONIC(int, sigfillset, unsigned long *set) {
  *set = ~0ul;
  return 0;
}

BIONIC(int, pthread_sigmask, int how, const unsigned long *set, unsigned long *before) {
  sigset_t wanted, old;
  sigemptyset(&wanted);
  *(unsigned long *)&wanted = *set;
  int status = REAL(pthread_sigmask)(how, &wanted, &old);
  if (before != NULL) *before = *(unsigned long *)&old;
  return status;
}

/* The kernel's struct stat has its size at byte 48 on both ABIs. */
BIONIC(int, fstat, int file, char *status) {
  struct stat found;
  int result = REAL(fstat)(file, &found);
  *(long long *)(status + 48) = found.st_size;
  return result;
}
