// The text of inline assembly, read into instructions. Source: PTX ISA 9.0, "Syntax".
#pragma once
#include <string>
#include <tuple>
#include <vector>

#include "emulation.h"

struct emulated_node {
  enum { REGISTER, NAME, NUMBER, MEMORY, LIST } kind;
  long number;
  std::string name;
  std::vector<emulated_node> items;
};
struct emulated_instruction {
  std::string name;
  std::vector<std::string> modifiers;  // parts of the name
  std::vector<emulated_node> operands;
  bool has(const char *modifier) const {
    for (auto &one : modifiers)
      if (one == modifier) return true;
    return false;
  }
};

struct emulated_reader {
  const char *at;
  void blanks() { while (isspace(*at)) at++; }
  bool take(char c) { return blanks(), *at == c && at++; }
  std::string word() {
    blanks();
    const char *begin = at;
    while (isalnum(*at) || *at == '_' || *at == '.' || *at == ':' || *at == '%') at++;
    if (at == begin) emulated_fail((std::string("cannot read assembly: ") + at).c_str());
    return {begin, at};
  }
  emulated_node node() {
    for (auto [open, close, kind] : {std::tuple{'[', ']', emulated_node::MEMORY}, {'{', '}', emulated_node::LIST}})
      if (take(open)) {
        emulated_node list = {kind};
        while (!take(close)) {
          list.items.push_back(node());
          take(',');
        }
        return list;
      }
    std::string text = word();
    if (text[0] == '%' && isdigit(text[1])) return {emulated_node::REGISTER, atol(text.c_str() + 1)};
    if (isdigit(text[0])) return {emulated_node::NUMBER, atol(text.c_str())};
    return {emulated_node::NAME, 0, text};
  }
  emulated_instruction instruction() {
    emulated_instruction one = {word()};
    for (size_t begin = 0, end; begin <= one.name.size(); begin = end + 1) {
      end = std::min(one.name.find('.', begin), one.name.size());
      one.modifiers.push_back(one.name.substr(begin, end - begin));
    }
    while (!take(';')) {
      one.operands.push_back(node());
      take(',');
    }
    return one;
  }
};
