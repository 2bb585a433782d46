// Inline assembly of headers, for those instructions of sm_90a that tcomp's headers have: emulated_ptx.cpp reads it.
#pragma once
#include "emulation.h"

inline const unsigned EMULATED_SHARED_BEGIN = 1024 + 64;  // of what is given at launch; no multiple of 1024
inline unsigned __cvta_generic_to_shared(const void *pointer) {
  return (const unsigned char *)pointer - emulated_dynamic_shared + EMULATED_SHARED_BEGIN;
}

// An operand: a variable, or a value.
struct emulated_register { void *place; unsigned bytes; uint64_t value; };
template <typename T> emulated_register emulated_out(T &x) { return {&x, sizeof x, 0}; }
template <typename T> emulated_register emulated_in(T x) {
  emulated_register made = {nullptr, sizeof x, 0};
  memcpy(&made.value, &x, sizeof x);
  return made;
}

struct emulated_instruction;
struct emulated_program {
  std::vector<emulated_instruction> *instructions;
  emulated_program(const char *text);
  void run(emulated_register *registers) const;
};
