/* The eight tile registers of AMX in memory, for CPUs that have none: Intel 64 and IA-32 Architectures Software
 * Developer's Manual, volume 2, LDTILECFG, TILELOADD, TDPBF16PS, TILESTORED. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  int rows, row_bytes;
  uint8_t bytes[16][64];
} tile;

static _Thread_local struct {
  int configured;
  tile tiles[8];
} state;

static tile *at(int number) {
  if (!state.configured || state.tiles[number].rows == 0) abort();
  return &state.tiles[number];
}

void tcomp_emulated_configure(const uint8_t *content) {
  if (content[0] != 1) abort();
  state.configured = 1;
  memset(state.tiles, 0, sizeof state.tiles);
  for (int i = 0; i < 8; i++) {
    state.tiles[i].rows = content[48 + i];
    state.tiles[i].row_bytes = content[16 + 2 * i] | content[17 + 2 * i] << 8;
    if (state.tiles[i].rows > 16 || state.tiles[i].row_bytes > 64) abort();
  }
}

void tcomp_emulated_release(void) { memset(&state, 0, sizeof state); }

void tcomp_emulated_zero(int number) {
  tile *t = at(number);
  memset(t->bytes, 0, sizeof t->bytes);
}

void tcomp_emulated_load(int number, const uint8_t *first, int64_t next) {
  tile *t = at(number);
  memset(t->bytes, 0, sizeof t->bytes);
  for (int row = 0; row < t->rows; row++) memcpy(t->bytes[row], first + row * next, (size_t)t->row_bytes);
}

void tcomp_emulated_store(int number, uint8_t *first, int64_t next) {
  tile *t = at(number);
  for (int row = 0; row < t->rows; row++) memcpy(first + row * next, t->bytes[row], (size_t)t->row_bytes);
}

static float wide(const uint8_t *narrow) {
  uint32_t bits = (uint32_t)narrow[1] << 24 | (uint32_t)narrow[0] << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

void tcomp_emulated_multiply(int total, int left, int right) {
  tile *c = at(total), *a = at(left), *b = at(right);
  if (c->rows != a->rows || a->row_bytes != 4 * b->rows || c->row_bytes != b->row_bytes) abort();
  for (int row = 0; row < c->rows; row++)
    for (int pair = 0; pair < b->rows; pair++)
      for (int column = 0; column < c->row_bytes / 4; column++) {
        float sum;
        memcpy(&sum, &c->bytes[row][4 * column], sizeof sum);
        for (int half = 0; half < 2; half++)
          sum += wide(&a->bytes[row][4 * pair + 2 * half]) * wide(&b->bytes[pair][4 * column + 2 * half]);
        memcpy(&c->bytes[row][4 * column], &sum, sizeof sum);
      }
}
