/* A plugin of qemu-user 4.2 or newer: what a program executes, exactly, and what its caches would miss.
 *
 * Prints a line `ADDRESS INSTRUCTIONS TIMES MISSES1 MISSES2 MISSES3` for every translated piece of straight
 * code when the program ends, to the file that the argument `out=PATH` names: how often it ran, and the cache
 * lines that it wanted and a cache of each level, of `l1`, `l2` and `l3` bytes, did not hold. Caches are empty
 * at first, replace what was used longest ago, and take what is written as what is read. Without sizes there
 * are no caches and no misses, and the program runs many times as fast. Numbers are the same in every run. For programs of one thread. Debian has no header of the interface: what is used of it is
 * declared here. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*memory_callback)(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t address, void *data);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int operation, void *value, uint64_t by);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *, memory_callback, int flags, int rw, void *data);
unsigned qemu_plugin_mem_size_shift(qemu_plugin_meminfo_t info);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

#define LEVELS 3
#define LINE_SHIFT 6
#define LARGEST_ACCESS 32 /* bytes; those that are sure to stay in a line are not asked for their size */
#define NO_REGISTERS 0
#define READS_AND_WRITES 3
#define ADD 0

struct piece {
  uint64_t address, instructions, times, misses[LEVELS];
  struct piece *next;
};
static struct piece *pieces;
static FILE *out;

/* Lines of each set, the last used first; one more than their number, 0 being none. `mask` is the number of
 * sets less one where that is a power of two, else 0. */
struct cache {
  uint64_t sets, mask;
  unsigned ways;
  uint64_t *lines;
};
static struct cache caches[LEVELS] = {{.ways = 4}, {.ways = 8}, {.ways = 16}};
static uint64_t last_line = UINT64_MAX; /* Wanted last: the first of its set in the first cache. */

/* Whether a cache holds a line, which is the last used one of its set afterwards. */
static bool holds(struct cache *cache, uint64_t line) {
  uint64_t index = cache->mask ? line & cache->mask : line % cache->sets;
  uint64_t *set = cache->lines + index * cache->ways, wanted = line + 1, moved = *set;
  if (moved == wanted) return true;
  *set = wanted;
  for (unsigned way = 1; way < cache->ways; way++) {
    uint64_t here = set[way];
    set[way] = moved;
    if (here == wanted) return true;
    moved = here;
  }
  return false;
}

static void touch(struct piece *piece, uint64_t line) {
  if (line == last_line) return;
  last_line = line;
  for (int level = 0; level < LEVELS && !holds(&caches[level], line); level++) piece->misses[level]++;
}

static void accessed(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t address, void *piece) {
  uint64_t first = address >> LINE_SHIFT;
  (void)vcpu;
  touch(piece, first);
  if (((address + LARGEST_ACCESS - 1) >> LINE_SHIFT) == first) return;
  uint64_t last = (address + (1u << qemu_plugin_mem_size_shift(info)) - 1) >> LINE_SHIFT;
  if (last != first) touch(piece, last);
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
  struct piece *piece = calloc(1, sizeof *piece);
  (void)id;
  if (piece == NULL) abort();
  piece->address = qemu_plugin_tb_vaddr(tb);
  piece->instructions = qemu_plugin_tb_n_insns(tb);
  piece->next = pieces;
  pieces = piece;
  qemu_plugin_register_vcpu_tb_exec_inline(tb, ADD, &piece->times, 1);
  if (caches[0].lines == NULL) return;
  for (size_t i = 0; i < piece->instructions; i++)
    qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(tb, i), accessed, NO_REGISTERS, READS_AND_WRITES,
                                     piece);
}

static void finished(qemu_plugin_id_t id, void *unused) {
  (void)id, (void)unused;
  for (struct piece *p = pieces; p != NULL; p = p->next) {
    if (p->times == 0) continue;
    fprintf(out, "%llx %llu %llu", (unsigned long long)p->address, (unsigned long long)p->instructions,
            (unsigned long long)p->times);
    for (int level = 0; level < LEVELS; level++) fprintf(out, " %llu", (unsigned long long)p->misses[level]);
    fputc('\n', out);
  }
  fclose(out);
}

static bool make_cache(struct cache *cache, const char *bytes) {
  cache->sets = strtoull(bytes, NULL, 10) >> LINE_SHIFT;
  cache->sets /= cache->ways;
  if (cache->sets == 0) return false;
  if ((cache->sets & (cache->sets - 1)) == 0) cache->mask = cache->sets - 1;
  cache->lines = calloc(cache->sets * cache->ways, sizeof *cache->lines);
  return cache->lines != NULL;
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info,
                                                               int count, char **arguments) {
  (void)info;
  for (int i = 0; i < count; i++) {
    const char *text = arguments[i];
    if (strncmp(text, "out=", 4) == 0)
      out = fopen(text + 4, "w");
    else if (text[0] != 'l' || text[1] < '1' || text[1] > '3' || text[2] != '=' ||
             !make_cache(&caches[text[1] - '1'], text + 3))
      return -1;
  }
  for (int level = 1; level < LEVELS; level++)
    if ((caches[level].lines == NULL) != (caches[0].lines == NULL)) return -1;
  if (out == NULL) return -1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, finished, NULL);
  return 0;
}
