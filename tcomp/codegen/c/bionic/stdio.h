#ifndef TCOMP_BIONIC_STDIO_H
#define TCOMP_BIONIC_STDIO_H

#include <stdarg.h>
#include <stddef.h>

int snprintf(char *text, size_t bytes, const char *format, ...);
int vsnprintf(char *text, size_t bytes, const char *format, va_list arguments);

#endif
