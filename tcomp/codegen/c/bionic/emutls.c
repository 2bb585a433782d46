/* Thread-local variables where the loader knows none, which is Android's up to API 28. Compilers call
 * __emutls_get_address for each use of one; NDKs have it in their own library. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define MOST_VARIABLES 16

/* What compilers make of a variable. */
typedef struct {
  size_t bytes, alignment;
  _Atomic(size_t) number; /* from 1; 0: not used yet */
  const void *initial;    /* NULL: zeros */
} variable;

static pthread_key_t key; /* of a thread's array of pointers to its values */
static pthread_mutex_t lock;
static size_t variables;

static void free_values(void *argument) {
  void **values = argument;
  for (size_t i = 0; i < MOST_VARIABLES; i++) free(values[i]);
  free(values);
}

__attribute__((constructor)) static void create_key(void) {
  if (pthread_key_create(&key, free_values) != 0) abort();
}

/* Threads may outlive the library, and must not call free_values then. */
__attribute__((destructor)) static void delete_key(void) { pthread_key_delete(key); }

static size_t number_of(variable *wanted) {
  size_t number = atomic_load_explicit(&wanted->number, memory_order_acquire);
  if (number != 0) return number;
  pthread_mutex_lock(&lock);
  number = atomic_load_explicit(&wanted->number, memory_order_relaxed);
  if (number == 0) {
    number = ++variables;
    if (number > MOST_VARIABLES) abort();
    atomic_store_explicit(&wanted->number, number, memory_order_release);
  }
  pthread_mutex_unlock(&lock);
  return number;
}

static void *new_value(const variable *wanted) {
  void *value = NULL;
  size_t alignment = wanted->alignment < sizeof(void *) ? sizeof(void *) : wanted->alignment;
  if (posix_memalign(&value, alignment, wanted->bytes) != 0) abort();
  if (wanted->initial != NULL)
    memcpy(value, wanted->initial, wanted->bytes);
  else
    memset(value, 0, wanted->bytes);
  return value;
}

__attribute__((visibility("hidden"))) void *__emutls_get_address(variable *wanted) {
  size_t number = number_of(wanted);
  void **values = pthread_getspecific(key);
  if (values == NULL) {
    values = calloc(MOST_VARIABLES, sizeof *values);
    if (values == NULL || pthread_setspecific(key, values) != 0) abort();
  }
  void **value = &values[number - 1];
  if (*value == NULL) *value = new_value(wanted);
  return *value;
}
