#define _GNU_SOURCE
#include "variant.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "affinity.h"
#include "cpu.h"

#define NAME_BYTES 64

/* Text that is put together piece by piece, and cut off where it is too long. */
typedef struct {
  char *text;
  size_t bytes, used;
} message;

__attribute__((format(printf, 2, 3))) static void append(message *message, const char *format, ...) {
  size_t left = message->bytes - message->used;
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(message->text + message->used, left, format, arguments);
  va_end(arguments);
  if (length > 0) message->used += (size_t)length < left ? (size_t)length : left - 1;
}

static tcomp_status named(const char *name, const tcomp_variant_info **result, message *message) {
  for (int32_t i = 0; i < tcomp_model.variant_count; i++) {
    const tcomp_variant_info *variant = &tcomp_model.variants[i];
    char missing[NAME_BYTES];
    if (strcmp(variant->name, name) != 0) continue;
    if (tcomp_cpu_lacks(variant->features, missing, sizeof missing)) {
      append(message, "this CPU has no %s, which variant %s needs", missing, name);
      return TCOMP_ERROR_CPU;
    }
    *result = variant;
    return TCOMP_OK;
  }
  append(message, "tcomp_options.variant is %s; the library has", name);
  for (int32_t i = 0; i < tcomp_model.variant_count; i++)
    append(message, "%s %s", i > 0 ? "," : "", tcomp_model.variants[i].name);
  return TCOMP_ERROR_ARGUMENT;
}

/* The variant for the fastest core that `options` choose. */
static int32_t preferred_variant(const tcomp_options *options) {
  cpu_set_t cpus;
  if (tcomp_model.core_count == 0) return 0; /* CPUs that do not name themselves */
  tcomp_choose_cpus(options, &cpus);
  return tcomp_cpu_variant(&cpus, tcomp_model.cores, tcomp_model.core_count);
}

tcomp_status tcomp_choose_variant(const tcomp_options *options, const tcomp_variant_info **result, char *text,
                                  size_t text_bytes) {
  message message = {text, text_bytes, 0};
  char missing[NAME_BYTES];
  if (options->variant != NULL) return named(options->variant, result, &message);
  int32_t count = tcomp_model.variant_count;
  *result = &tcomp_model.variants[preferred_variant(options)];
  if (!tcomp_cpu_lacks((*result)->features, missing, sizeof missing)) return TCOMP_OK;
  for (int32_t i = 0; i < count; i++) {
    *result = &tcomp_model.variants[i];
    if (!tcomp_cpu_lacks((*result)->features, missing, sizeof missing)) return TCOMP_OK;
    append(&message, "%s%s%s", i == 0 ? "this CPU has no " : ", and no ", missing,
           count == 1 ? ", which the library is compiled for" : " for ");
    append(&message, count == 1 ? " (%s)" : "%s", count == 1 ? tcomp_model.target : (*result)->name);
  }
  return TCOMP_ERROR_CPU;
}
