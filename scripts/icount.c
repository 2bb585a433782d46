/* A plugin of qemu-user 4.2 or newer that counts executed instructions by the code they belong to.
 *
 * Prints a line `ADDRESS INSTRUCTIONS TIMES` for every translated piece of straight code when the program
 * ends, to the file that the argument `out=PATH` names. Counts are exact and the same in every run.
 * Debian has no header of the interface: what is used of it is declared here. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int operation, void *value, uint64_t by);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

struct piece {
  uint64_t address, instructions, times;
  struct piece *next;
};
static struct piece *pieces;
static FILE *out;

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
  struct piece *piece = calloc(1, sizeof *piece);
  (void)id;
  if (piece == NULL) abort();
  piece->address = qemu_plugin_tb_vaddr(tb);
  piece->instructions = qemu_plugin_tb_n_insns(tb);
  do piece->next = pieces;
  while (!__sync_bool_compare_and_swap(&pieces, piece->next, piece));
  qemu_plugin_register_vcpu_tb_exec_inline(tb, 0, &piece->times, 1);
}

static void finished(qemu_plugin_id_t id, void *unused) {
  (void)id, (void)unused;
  for (struct piece *p = pieces; p != NULL; p = p->next)
    if (p->times > 0)
      fprintf(out, "%llx %llu %llu\n", (unsigned long long)p->address, (unsigned long long)p->instructions,
              (unsigned long long)p->times);
  fclose(out);
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info,
                                                               int count, char **arguments) {
  (void)info;
  if (count != 1 || strncmp(arguments[0], "out=", 4) != 0) return -1;
  out = fopen(arguments[0] + 4, "w");
  if (out == NULL) return -1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, finished, NULL);
  return 0;
}
