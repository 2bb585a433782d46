#ifndef TCOMP_BIONIC_STRING_H
#define TCOMP_BIONIC_STRING_H

#include <stddef.h>

void *memcpy(void *destination, const void *source, size_t bytes);
void *memmove(void *destination, const void *source, size_t bytes);
void *memset(void *memory, int byte, size_t bytes);
int memcmp(const void *a, const void *b, size_t bytes);
size_t strlen(const char *text);
size_t strcspn(const char *text, const char *rejected);
int strcmp(const char *a, const char *b);
int strncmp(const char *a, const char *b, size_t bytes);
char *strchr(const char *text, int wanted);
char *strerror(int number);

#endif
