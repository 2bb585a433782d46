// A stand-in for NVIDIA's driver: one device whose memory is this process's, and whose modules are shared
// objects (see nvcc here). Buffers end where an unreadable page begins: a kernel that goes beyond them breaks off,
// and whatever follows in this process fails with the same error, as on a GPU. Several devices (EMULATED_DEVICES) differ
// in their numbers alone. Threads take turns, a call each.
#include <cmath>
#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#include "include/cuda.h"
#include "streams.h"

#define API extern "C" __attribute__((visibility("default")))
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_IMAGE = 200, INVALID_CONTEXT = 201,
       NO_BINARY = 209, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700 };

struct Dim { unsigned x, y, z; };
struct Function;
struct Module {
  void *library;
  std::vector<Function *> functions;
};
struct Function {
  void (*block)(void **);
  Dim *block_index, *block_size, *grid_size;
  int dynamic_shared, count, cluster;
  const int *sizes;  // of the parameters, in bytes
};
static std::map<uintptr_t, std::pair<char *, size_t>> buffers;
static std::map<uintptr_t, size_t> locked;  // pages of the CPU's memory
static size_t allocated;
static bool broken;  // a kernel touched what is no memory
static sigjmp_buf where_kernels_begin;
static std::set<Function *> functions;  // of modules that are loaded
static long modules, events, graphs, executables, retained;
static thread_local std::vector<void *> contexts;  // the current one is the last; of device i it is i + 1
#define NEEDS_CONTEXT \
  if (contexts.empty() || contexts.back() == nullptr) return INVALID_CONTEXT
static long calls_until_refusal = -1;

// The first of a call: waits for its turn; and refuses it where a test asks for that.
static std::recursive_mutex turns;
#define TURN std::lock_guard<std::recursive_mutex> turn(turns)
#define REFUSABLE_TURN \
  TURN;                \
  if (calls_until_refusal >= 0 && calls_until_refusal-- == 0) return OUT_OF_MEMORY

// What tests ask of the driver: how many of each it holds, in this order, and the bytes of device memory.
API void emulated_held(long *held) {
  TURN;
  long counts[] = {(long)buffers.size(), (long)locked.size(), (long)streams.size() - 1, events, modules, graphs, executables,
                   retained, (long)allocated};
  memcpy(held, counts, sizeof counts);
}
// Lets one call that can be refused answer that there is no memory: the first after so many others; -1: none.
API long emulated_refuse(long after) {
  TURN;
  long before = calls_until_refusal;
  calls_until_refusal = after;
  return before;
}


static void break_off(int) { siglongjmp(where_kernels_begin, 1); }
static void run_guarded(const std::function<void()> &kernel) {
  struct sigaction ours = {}, theirs;
  ours.sa_handler = break_off;
  sigaction(SIGSEGV, &ours, &theirs);
  if (sigsetjmp(where_kernels_begin, 1) == 0) kernel();
  else broken = true;
  sigaction(SIGSEGV, &theirs, nullptr);
}
static int waited() { return broken ? ILLEGAL_ADDRESS : OK; }

static long setting(const char *name, long otherwise) {
  const char *text = getenv(name);
  return text == nullptr ? otherwise : atol(text);
}
static bool is_locked(const void *pointer) {
  auto after = locked.upper_bound((uintptr_t)pointer);
  return after != locked.begin() && (uintptr_t)pointer < (--after)->first + after->second;
}

API int cuInit(unsigned) { return setting("EMULATED_DEVICES", 1) ? OK : NO_DEVICE; }
API int cuGetExportTable(const void **, const void *) { return NOT_FOUND; }  // NVRTC asks, and goes on without
API int cuDriverGetVersion(int *version) { *version = setting("EMULATED_DRIVER", 13000); return OK; }
API int cuDeviceGetCount(int *count) { *count = setting("EMULATED_DEVICES", 1); return OK; }
API int cuDeviceGet(int *device, int number) { *device = number; return number < setting("EMULATED_DEVICES", 1) ? OK : 101; }
API int cuDeviceGetName(char *name, int bytes, int) { snprintf(name, bytes, "Emulated GPU"); return OK; }
API int cuDeviceGetAttribute(int *value, int which, int) {
  long capability = setting("EMULATED_CAPABILITY", 80);
  static const std::map<int, int> KNOWN = {{13, 1410000}, {16, 108}, {36, 0}, {37, 5120}, {38, 1 << 20},
                                           {39, 2048}, {81, 164 << 10}, {82, 65536}, {97, 163 << 10}};
  if (which == 75) *value = capability / 10;
  else if (which == 76) *value = capability % 10;
  else if (KNOWN.count(which)) *value = KNOWN.at(which);
  else return INVALID_VALUE;
  return OK;
}
API int cuDevicePrimaryCtxRetain(void **context, int device) {
  REFUSABLE_TURN;
  *context = (void *)(uintptr_t)(device + 1);
  retained++;
  return OK;
}
API int cuDevicePrimaryCtxRelease_v2(int) { TURN; retained--; return OK; }
API int cuCtxSetCurrent(void *context) {
  if (!contexts.empty()) contexts.pop_back();
  if (context != nullptr) contexts.push_back(context);
  return OK;
}
API int cuCtxGetCurrent(void **context) { *context = contexts.empty() ? nullptr : contexts.back(); return OK; }
API int cuCtxGetDevice(int *device) {
  NEEDS_CONTEXT;
  *device = (int)(uintptr_t)contexts.back() - 1;
  return OK;
}
API int cuCtxPushCurrent_v2(void *context) {
  REFUSABLE_TURN;
  contexts.push_back(context);
  return OK;
}
API int cuCtxPopCurrent_v2(void **context) {
  NEEDS_CONTEXT;
  *context = contexts.back();
  contexts.pop_back();
  return OK;
}
API int cuCtxSynchronize() { TURN; NEEDS_CONTEXT; finish_all(); return waited(); }
API int cuGetErrorString(int code, const char **text) {
  static const std::map<int, const char *> TEXTS = {{1, "invalid argument"}, {2, "out of memory"},
      {100, "no CUDA-capable device is detected"}, {200, "device kernel image is invalid"}, {201, "invalid device context"},
      {209, "no kernel image is available for execution on the device"}, {500, "named symbol not found"},
      {700, "an illegal memory access was encountered"},
      {900, "operation not permitted when stream is capturing"}, {904, "capturing stream has unjoined work"},
      {905, "dependency created on uncaptured work in another stream"}};
  *text = TEXTS.count(code) ? TEXTS.at(code) : "unrecognized error code";
  return OK;
}

API int cuMemAlloc_v2(void **pointer, size_t bytes) {
  REFUSABLE_TURN;
  NEEDS_CONTEXT;
  if (broken) return ILLEGAL_ADDRESS;
  if (allocated + bytes > (size_t)setting("EMULATED_MEMORY", 4L << 30)) return OUT_OF_MEMORY;
  size_t page = 4096, room = (bytes + 255) / 256 * 256, whole = (room + page - 1) / page * page;
  char *memory = (char *)mmap(nullptr, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return OUT_OF_MEMORY;
  mprotect(memory + whole, page, PROT_NONE);
  memset(memory, 0xa5, whole);  // uninitialised memory must not look like zeros
  *pointer = memory + whole - room;
  buffers[(uintptr_t)*pointer] = {memory, whole + page};
  allocated += whole;
  return OK;
}
API int cuMemFree_v2(void *pointer) {
  TURN;
  NEEDS_CONTEXT;
  auto found = buffers.find((uintptr_t)pointer);
  if (found == buffers.end()) return INVALID_VALUE;
  finish_all();
  munmap(found->second.first, found->second.second);
  allocated -= found->second.second - 4096;
  buffers.erase(found);
  return OK;
}
API int cuMemHostAlloc(void **pointer, size_t bytes, unsigned) {
  REFUSABLE_TURN;
  NEEDS_CONTEXT;
  if ((*pointer = malloc(bytes)) == nullptr) return OUT_OF_MEMORY;
  memset(*pointer, 0xa5, bytes);
  locked[(uintptr_t)*pointer] = bytes;
  return OK;
}
API int cuMemFreeHost(void *pointer) {
  TURN;
  NEEDS_CONTEXT;
  if (locked.erase((uintptr_t)pointer) == 0) return INVALID_VALUE;
  finish_all();
  free(pointer);
  return OK;
}
API int cuMemcpyHtoD_v2(void *to, const void *from, size_t bytes) { TURN; NEEDS_CONTEXT; finish(legacy_stream.last); memcpy(to, from, bytes); return waited(); }
API int cuMemcpyDtoH_v2(void *to, const void *from, size_t bytes) { TURN; NEEDS_CONTEXT; finish(legacy_stream.last); memcpy(to, from, bytes); return waited(); }
// Pages that are not locked are read at once, and written before the call returns.
API int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
  REFUSABLE_TURN;
  NEEDS_CONTEXT;
  std::vector<char> now;
  if (!is_locked(from)) now.assign((const char *)from, (const char *)from + bytes);
  perform(stream, [=] { memcpy(to, now.empty() ? from : now.data(), bytes); });
  return OK;
}
API int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
  TURN;
  NEEDS_CONTEXT;
  finish(is_locked(to) ? nullptr : perform(stream, [=] { memcpy(to, from, bytes); }));
  if (is_locked(to)) perform(stream, [=] { memcpy(to, from, bytes); });
  return OK;
}
API int cuMemcpyDtoDAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
  TURN;
  NEEDS_CONTEXT;
  perform(stream, [=] { memmove(to, from, bytes); });
  return OK;
}
API int cuPointerGetAttribute(void *value, int which, void *pointer) {
  TURN;
  if (which == 2 && is_locked(pointer)) {
    *(unsigned *)value = 1;
    return OK;
  }
  auto after = buffers.upper_bound((uintptr_t)pointer);
  if (which != 2 || after == buffers.begin()) return INVALID_VALUE;
  auto &[start, mapped] = *--after;
  if ((char *)pointer >= mapped.first + mapped.second) return INVALID_VALUE;
  *(unsigned *)value = 2;
  return OK;
}
API int cuMemsetD8Async(void *to, unsigned char value, size_t bytes, void *stream) {
  TURN;
  NEEDS_CONTEXT;
  perform(stream, [=] { memset(to, value, bytes); });
  return waited();
}

API int cuModuleLoadData(void **module, const void *image) {
  REFUSABLE_TURN;
  NEEDS_CONTEXT;
  if (broken) return ILLEGAL_ADDRESS;
  const unsigned char *elf = (const unsigned char *)image;
  if (memcmp(elf, "\177ELF", 4) != 0) return INVALID_IMAGE;
  if (elf[18] != 62) return NO_BINARY;  // a real cubin
  uint64_t sections = *(const uint64_t *)(elf + 40);
  size_t bytes = sections + (size_t)*(const uint16_t *)(elf + 58) * *(const uint16_t *)(elf + 60);
  char path[] = "/tmp/emulated-cubin-XXXXXX";
  int file = mkstemp(path);
  if (file < 0 || write(file, image, bytes) != (ssize_t)bytes) return OUT_OF_MEMORY;
  close(file);
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) fprintf(stderr, "%s\n", dlerror());
  unlink(path);
  if (library == nullptr) return INVALID_IMAGE;
  *module = new Module{library, {}};
  modules++;
  return OK;
}
API int cuModuleUnload(void *handle) {
  TURN;
  NEEDS_CONTEXT;
  Module *module = (Module *)handle;
  finish_all();
  for (Function *function : module->functions) functions.erase(function);  // their memory stays, for check_loaded
  delete module;
  modules--;
  return OK;
}
// Ends the process where a kernel starts, or is in a graph that does, whose module is there no more.
static void check_loaded(Function *function) {
  if (functions.count(function) != 0) return;
  fprintf(stderr, "emulated GPU: a kernel runs whose module is unloaded\n");
  abort();
}
API int cuModuleGetFunction(void **function, void *module, const char *name) {
  REFUSABLE_TURN;
  void *library = ((Module *)module)->library;
  auto block = (void (*)(void **))dlsym(library, (std::string(name) + "_block").c_str());
  if (block == nullptr) return NOT_FOUND;
  *function = new Function{block, (Dim *)dlsym(library, "emulated_block_index"),
                           (Dim *)dlsym(library, "emulated_block_size"),
                           (Dim *)dlsym(library, "emulated_grid_size"), 0,
                           *(int *)dlsym(library, (std::string(name) + "_count").c_str()),
                           *(int *)dlsym(library, (std::string(name) + "_cluster").c_str()),
                           (const int *)dlsym(library, (std::string(name) + "_sizes").c_str())};
  ((Module *)module)->functions.push_back((Function *)*function);
  functions.insert((Function *)*function);
  return OK;
}
API int cuFuncSetAttribute(void *function, int which, int value) {
  REFUSABLE_TURN;
  if (which == 8) ((Function *)function)->dynamic_shared = value;
  return value <= 227 << 10 ? OK : INVALID_VALUE;
}

API int cuLaunchKernel(void *handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                       unsigned shared, void *stream, void **arguments, void **) {
  REFUSABLE_TURN;
  NEEDS_CONTEXT;
  if (broken) return ILLEGAL_ADDRESS;
  Function *function = (Function *)handle;
  unsigned limit = function->dynamic_shared > 48 << 10 ? function->dynamic_shared : 48 << 10;
  if (gx == 0 || gy == 0 || gz == 0 || gy > 65535 || gz > 65535 || bx * by * bz > 1024 || bz > 64 || shared > limit || gx % function->cluster != 0)
    return INVALID_VALUE;
  std::vector<std::vector<char>> values;
  for (int i = 0; i < function->count; i++)
    values.emplace_back((char *)arguments[i], (char *)arguments[i] + function->sizes[i]);
  perform(stream, [=]() mutable {
    std::vector<void *> places;
    for (auto &value : values) places.push_back(value.data());
    check_loaded(function);
    *function->grid_size = {gx, gy, gz};
    *function->block_size = {bx, by, bz};
    if (broken) return;
    run_guarded([&] {
      for (unsigned z = 0; z < gz; z++)
        for (unsigned y = 0; y < gy; y++)
          for (unsigned x = 0; x < gx; x += function->cluster) {
            *function->block_index = {x, y, z};
            function->block(places.data());
          }
    });
  });
  return OK;
}

// As the driver's reference says, of tensors without interleaving: what both kinds of maps have in common.
static bool describe(CUtensorMap *made, const CUtensorMap *map, int type, unsigned rank, void *address,
                     const uint64_t *extents, const uint64_t *strides, const unsigned *steps, int interleave, int swizzle,
                     int fill) {
  static const int SIZES[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
  static const int SWIZZLES[] = {0, 32, 64, 128};
  if ((uintptr_t)map % 128 || (uintptr_t)address % 16 || type < 0 || type > 12 || rank < 1 || rank > 5 ||
      interleave != 0 || swizzle < 0 || swizzle > 3 || fill != 0)
    return false;
  *made = {EMULATED_TENSOR_MAP, (uint16_t)SIZES[type], (uint8_t)rank, (uint8_t)SWIZZLES[swizzle], (char *)address};
  made->rounds = type == 11;
  for (unsigned i = 0; i < rank; i++) {
    if (extents[i] < 1 || extents[i] > 1ULL << 32 || steps[i] < 1 || steps[i] > 8) return false;
    if (i > 0 && (strides[i - 1] % 16 || strides[i - 1] >= 1ULL << 40)) return false;
    if (i > 0) made->strides[i - 1] = strides[i - 1];
    made->extents[i] = (uint32_t)extents[i];
    made->steps[i] = (uint16_t)steps[i];
  }
  return true;
}
static bool has_line(const CUtensorMap &map, unsigned elements) {
  uint64_t line = (uint64_t)elements * map.itemsize;
  return elements >= 1 && elements <= 256 && line % 16 == 0 && (map.swizzle == 0 || line <= map.swizzle);
}
API int cuTensorMapEncodeTiled(CUtensorMap *map, int type, unsigned rank, void *address, const uint64_t *extents,
                               const uint64_t *strides, const unsigned *box, const unsigned *steps, int interleave,
                               int swizzle, int, int fill) {
  CUtensorMap made;
  if (!describe(&made, map, type, rank, address, extents, strides, steps, interleave, swizzle, fill) ||
      !has_line(made, box[0]))
    return INVALID_VALUE;
  for (unsigned i = 0; i < rank; i++) {
    if (box[i] < 1 || box[i] > 256) return INVALID_VALUE;
    made.box[i] = (uint16_t)box[i];
  }
  *map = made;
  return OK;
}
// Corners are given in the order of the axes of pixels, as CUTLASS gives them (copy_traits_sm90_im2col.hpp).
API int cuTensorMapEncodeIm2col(CUtensorMap *map, int type, unsigned rank, void *address, const uint64_t *extents,
                                const uint64_t *strides, const int *lower, const int *upper, unsigned channels,
                                unsigned pixels, const unsigned *steps, int interleave, int swizzle, int, int fill) {
  static const int CORNERS[] = {0, 0, 0, 1 << 15, 1 << 7, 1 << 4};
  CUtensorMap made;
  if (!describe(&made, map, type, rank, address, extents, strides, steps, interleave, swizzle, fill) || rank < 3 ||
      !has_line(made, channels) || pixels < 1 || pixels > 1024)
    return INVALID_VALUE;
  made.walks = 1;
  made.box[0] = (uint16_t)channels;
  made.box[1] = (uint16_t)pixels;
  for (unsigned i = 0; i < rank - 2; i++) {
    for (int corner : {lower[i], upper[i]})
      if (corner < -CORNERS[rank] || corner >= CORNERS[rank]) return INVALID_VALUE;
    if (lower[i] > (int64_t)extents[i + 1] - 1 + upper[i]) return INVALID_VALUE;
    made.lower[i] = (int16_t)lower[i];
    made.upper[i] = (int16_t)upper[i];
  }
  *map = made;
  return OK;
}

API int cuStreamCreate(void **stream, unsigned) {
  REFUSABLE_TURN;
  NEEDS_CONTEXT;
  *stream = new Stream;
  streams.insert((Stream *)*stream);
  return OK;
}
API int cuStreamDestroy_v2(void *stream) {
  TURN;
  finish(stream_of(stream)->last);
  streams.erase((Stream *)stream);
  delete (Stream *)stream;
  return OK;
}
API int cuStreamSynchronize(void *stream) { REFUSABLE_TURN; NEEDS_CONTEXT; finish(stream_of(stream)->last); return waited(); }
API int cuStreamWaitEvent(void *stream, void *event, unsigned) { TURN; return wait(stream, (Event *)event); }
API int cuStreamIsCapturing(void *stream, int *status) { TURN; *status = stream_of(stream)->capture != nullptr; return OK; }
API int cuEventCreate(void **event, unsigned) { REFUSABLE_TURN; NEEDS_CONTEXT; *event = new Event; events++; return OK; }
API int cuEventDestroy_v2(void *event) { TURN; finish(((Event *)event)->task); delete (Event *)event; events--; return OK; }
API int cuEventRecord(void *event, void *stream) { TURN; record((Event *)event, stream); return waited(); }
API int cuEventSynchronize(void *event) { TURN; finish(((Event *)event)->task); return waited(); }
API int cuEventElapsedTime(float *milliseconds, void *begin, void *end) {
  *milliseconds = (float)((((Event *)end)->seconds - ((Event *)begin)->seconds) * 1e3);
  return OK;
}

API int cuStreamBeginCapture_v2(void *stream, int) { TURN; return begin_capture(stream); }
API int cuStreamEndCapture(void *stream, void **graph) {
  TURN;
  int code = end_capture(stream, graph);
  graphs += *graph != nullptr;
  return code;
}
API int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long) {
  REFUSABLE_TURN;
  *executable = new Executable{std::make_shared<Graph>(*(Graph *)graph)};
  executables++;
  return OK;
}
API int cuGraphLaunch(void *executable, void *stream) { TURN; return launch_graph((Executable *)executable, stream); }
API int cuGraphDestroy(void *graph) { TURN; delete (Graph *)graph; graphs--; return OK; }
API int cuGraphExecDestroy(void *executable) { TURN; destroy_executable((Executable *)executable); executables--; return OK; }
