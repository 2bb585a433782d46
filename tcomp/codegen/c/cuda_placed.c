/* What all contexts that share it have on a device: code, and weights as the library has them or packed here,
 * where that makes them larger.
 *
 * Source: CUDA Driver API reference.
 */
#include "cuda_device.h"

#include <stdlib.h>
#include <string.h>

#define MAJOR 75 /* CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR */
#define MINOR 76
#define INVALID_IMAGE 200   /* CUDA_ERROR_INVALID_IMAGE */
#define NO_BINARY 209       /* CUDA_ERROR_NO_BINARY_FOR_GPU */
#define INVALID_PTX 218     /* CUDA_ERROR_INVALID_PTX */
#define UNSUPPORTED_PTX 222 /* CUDA_ERROR_UNSUPPORTED_PTX_VERSION */

/* The capabilities that tcomp compiles for, ascending. Newer GPUs run PTX of the last. */
static const int CAPABILITIES[] = {70, 75, 80, 86, 87, 89, 90};

/* ---- which device, which code ----------------------------------------------------------------------- */

int tcomp_cuda_current_device(int *number) {
  handle context = NULL;
  return tcomp_cuda.current(&context) == 0 && context != NULL && tcomp_cuda.current_device(number) == 0;
}

/* The device of the caller's current CUDA context, or the first one. */
static tcomp_status find_device(int *number, char *text) {
  int count = 0, code = tcomp_cuda.init(0);
  if (code == 0) code = tcomp_cuda.device_count(&count);
  if (code != 0 || count == 0)
    return tcomp_fail(text, TCOMP_ERROR_CPU, "no GPU here: %s (CUDA error %d); `nvidia-smi` lists those that the driver knows",
                      code == 0 ? "the driver knows none" : tcomp_cuda_words(code), code);
  if (tcomp_cuda_current_device(number)) return TCOMP_OK;
  TRY("the first device", tcomp_cuda.device_get(number, 0));
  return TCOMP_OK;
}

static int runs_on(const tcomp_cuda_image *image, int capability) {
  return image->exact ? image->capability == capability : image->capability <= capability;
}

static tcomp_status choose_variant(tcomp_placed *placed, const tcomp_options *options, char *text) {
  int major = 0, minor = 0;
  char name[128] = "";
  TRY("asking its capability", tcomp_cuda.device_attribute(&major, MAJOR, placed->number));
  TRY("asking its capability", tcomp_cuda.device_attribute(&minor, MINOR, placed->number));
  TRY("asking its name", tcomp_cuda.device_name(name, sizeof name, placed->number));
  for (int32_t i = 0; i < tcomp_model.variant_count; i++) {
    int32_t first = tcomp_cuda_variant_images[i];
    placed->variant = &tcomp_model.variants[i];
    if (!tcomp_cuda_is_wanted(options, placed->variant)) continue;
    if (first == tcomp_cuda_variant_images[i + 1]) return TCOMP_OK; /* nothing but copies */
    if (runs_on(&tcomp_cuda_images[first], 10 * major + minor)) return TCOMP_OK;
  }
  int nearest = 0;
  for (size_t i = 0; i < sizeof CAPABILITIES / sizeof *CAPABILITIES; i++)
    if (CAPABILITIES[i] <= 10 * major + minor) nearest = CAPABILITIES[i];
  if (nearest == 0)
    return tcomp_fail(text, TCOMP_ERROR_CPU,
                      "%s has compute capability %d.%d, and tcomp makes code for %d.%d and newer: take another GPU",
                      name, major, minor, CAPABILITIES[0] / 10, CAPABILITIES[0] % 10);
  return tcomp_fail(text, TCOMP_ERROR_CPU,
                    "the library has code for %.*s, and %s has compute capability %d.%d; compile it for cuda:sm_%d",
                    (int)strcspn(tcomp_model.target, " "), tcomp_model.target, name, major, minor,
                    nearest);
}

/* ---- code ------------------------------------------------------------------------------------------- */

/* Whether the driver means what it was given, and not the state of the device. */
static int is_unknown_code(int code) {
  return code == INVALID_IMAGE || code == NO_BINARY || code == INVALID_PTX || code == UNSUPPORTED_PTX;
}

static tcomp_status load_module(handle *module, const tcomp_cuda_image *image, char *text) {
  int code = tcomp_cuda.module_load(module, image->data);
  if (code == 0) return TCOMP_OK;
  if (!is_unknown_code(code)) return tcomp_cuda_refused(text, "loading the code", code);
  return tcomp_fail(text, TCOMP_ERROR_CPU,
                    "the driver cannot load the code of the library: %s (CUDA error %d); install a newer driver, or "
                    "compile the library with an older CUDA",
                    tcomp_cuda_words(code), code);
}

/* Loads images first .. end - 1, and finds the functions of their launches. */
static tcomp_status load_code(tcomp_placed *placed, int32_t first, int32_t end, char *text) {
  for (int32_t i = first; i < end; i++) {
    tcomp_status status = load_module(&placed->modules[i], &tcomp_cuda_images[i], text);
    if (status != TCOMP_OK) return status;
  }
  for (int32_t i = 0; i < tcomp_cuda_launch_count; i++) {
    const tcomp_cuda_launch_info *launch = &tcomp_cuda_launches[i];
    if (launch->image < first || launch->image >= end) continue;
    TRY(launch->symbol, tcomp_cuda_find(launch, placed->modules[launch->image], &placed->functions[i]));
  }
  return TCOMP_OK;
}

static void unload_code(tcomp_placed *placed, int32_t first, int32_t end) {
  for (int32_t i = first; i < end; i++) {
    if (placed->modules[i] != NULL) tcomp_cuda.module_unload(placed->modules[i]);
    placed->modules[i] = NULL;
  }
  for (int32_t i = 0; i < tcomp_cuda_launch_count; i++)
    if (tcomp_cuda_launches[i].image >= first && tcomp_cuda_launches[i].image < end) placed->functions[i] = NULL;
}

/* ---- weights ---------------------------------------------------------------------------------------- */

/* Memory and code that are needed while weights are packed. */
static tcomp_status pack_with(tcomp_device *device, const tcomp_placed *placed, const char *weights,
                              const tcomp_cuda_packing_info *packing, address *sources, address *arena, char *text) {
  const char *begin = weights + (tcomp_model.weights_bytes - tcomp_cuda_source_bytes);
  if (packing->arena_bytes > 0) TRY("memory to pack weights", tcomp_cuda.allocate(arena, packing->arena_bytes));
  if (tcomp_cuda_source_bytes > 0) {
    TRY("memory to pack weights", tcomp_cuda.allocate(sources, tcomp_cuda_source_bytes));
    TRY("copying the weights", tcomp_cuda.upload(*sources, begin, tcomp_cuda_source_bytes, device->current));
  }
  tcomp_frame frame = {.arena = (char *)(uintptr_t)*arena,
                       .weights = (const char *)(uintptr_t)placed->weights,
                       .device = device,
                       .packed = (char *)(uintptr_t)placed->packed,
                       .sources = (const char *)(uintptr_t)*sources};
  if (packing->pack(&frame) != 0) return tcomp_cuda_refused(text, device->problem, device->code);
  return TCOMP_OK;
}

static tcomp_status pack(tcomp_placed *placed, const char *weights, handle stream, char *text) {
  ptrdiff_t variant = placed->variant - tcomp_model.variants;
  const tcomp_cuda_packing_info *packing = &tcomp_cuda_packings[variant];
  int32_t end = tcomp_cuda_variant_images[variant + 1];
  tcomp_device device = {.placed = placed, .current = stream};
  address sources = 0, arena = 0;
  if (packing->pack == NULL) return TCOMP_OK;
  TRY("memory for packed weights", tcomp_cuda.allocate(&placed->packed, packing->packed_bytes));
  tcomp_status status = load_code(placed, packing->first_image, end, text);
  if (status == TCOMP_OK) status = pack_with(&device, placed, weights, packing, &sources, &arena, text);
  /* After a failure too: nothing may read what is freed here. */
  int code = tcomp_cuda.synchronize(stream);
  if (sources != 0) tcomp_cuda.release_memory(sources);
  if (arena != 0) tcomp_cuda.release_memory(arena);
  unload_code(placed, packing->first_image, end);
  if (status == TCOMP_OK) TRY("packing the weights", code);
  return status;
}

static tcomp_status place_weights(tcomp_placed *placed, const char *weights, handle stream, char *text) {
  size_t kept = tcomp_model.weights_bytes - tcomp_cuda_source_bytes;
  if (kept > 0) {
    TRY("memory for weights", tcomp_cuda.allocate(&placed->weights, kept));
    TRY("copying the weights", tcomp_cuda.upload(placed->weights, weights, kept, stream));
    TRY("copying the weights", tcomp_cuda.synchronize(stream));
  }
  return pack(placed, weights, stream, text);
}

/* ---- all of it -------------------------------------------------------------------------------------- */

static tcomp_status fill(tcomp_placed *placed, const tcomp_options *options, const char *weights, char *text) {
  handle stream = NULL;
  tcomp_status status = choose_variant(placed, options, text);
  if (status != TCOMP_OK) return status;
  ptrdiff_t variant = placed->variant - tcomp_model.variants;
  placed->modules = calloc((size_t)tcomp_cuda_variant_images[tcomp_model.variant_count] + 1, sizeof *placed->modules);
  placed->functions = calloc((size_t)tcomp_cuda_launch_count + 1, sizeof *placed->functions);
  if (placed->modules == NULL || placed->functions == NULL)
    return tcomp_fail(text, TCOMP_ERROR_MEMORY, "out of memory");
  status = load_code(placed, tcomp_cuda_variant_images[variant], tcomp_cuda_packings[variant].first_image, text);
  if (status != TCOMP_OK) return status;
  TRY("a stream", tcomp_cuda.stream_create(&stream, TCOMP_CUDA_NON_BLOCKING));
  status = place_weights(placed, weights, stream, text);
  tcomp_cuda.stream_destroy(stream);
  return status;
}

void tcomp_cuda_remove(tcomp_placed *placed) {
  handle ignored;
  if (tcomp_cuda.push(placed->context) == 0) {
    if (placed->weights != 0) tcomp_cuda.release_memory(placed->weights);
    if (placed->packed != 0) tcomp_cuda.release_memory(placed->packed);
    if (placed->modules != NULL && placed->functions != NULL)
      unload_code(placed, 0, tcomp_cuda_variant_images[tcomp_model.variant_count]);
    tcomp_cuda.pop(&ignored);
  }
  tcomp_cuda.release(placed->number);
  free(placed->modules);
  free(placed->functions);
  free(placed);
}

tcomp_status tcomp_cuda_place(const tcomp_options *options, const char *weights, tcomp_placed **result, char *text) {
  int number = 0;
  handle ignored;
  const char *problem = tcomp_cuda_load(tcomp_cuda_map_count > 0);
  if (problem != NULL) return tcomp_fail(text, TCOMP_ERROR_CPU, "%s", problem);
  tcomp_status status = find_device(&number, text);
  if (status != TCOMP_OK) return status;
  tcomp_placed *placed = calloc(1, sizeof *placed);
  if (placed == NULL) return tcomp_fail(text, TCOMP_ERROR_MEMORY, "out of memory");
  placed->number = number;
  int code = tcomp_cuda.retain(&placed->context, number);
  if (code != 0) {
    free(placed);
    return tcomp_cuda_refused(text, "a context", code);
  }
  code = tcomp_cuda.push(placed->context);
  status = code == 0 ? fill(placed, options, weights, text) : tcomp_cuda_refused(text, "a context", code);
  if (code == 0) tcomp_cuda.pop(&ignored);
  if (status == TCOMP_OK)
    *result = placed;
  else
    tcomp_cuda_remove(placed);
  return status;
}
