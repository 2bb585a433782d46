// What inline assembly of headers does, for those instructions of sm_90a that tcomp's headers have: barriers in shared
// memory, copies of tiles, products by groups of warps, clusters. The text itself is interpreted, so a wrong modifier
// shows. Source: PTX ISA 9.0.
//
// What hardware does on its own is seen as late as it may be, and what it will overwrite is lost at once.
#include <map>
#include <memory>
#include <set>
#include <string>

#include "cuda.h"
#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "emulated_ptx.h"
#include "emulated_types.h"

// ---- shared memory by number ----

static const unsigned EMULATED_REMOTE = 1u << 31;  // a bit of addresses of another block of the cluster

static unsigned char *emulated_at(unsigned address, unsigned bytes, unsigned rank) {
  if (address < EMULATED_SHARED_BEGIN || address + bytes > EMULATED_SHARED_BEGIN + EMULATED_SHARED_BYTES)
    emulated_fail("an address outside of shared memory");
  return emulated_shared[rank] + (address - EMULATED_SHARED_BEGIN);
}
struct emulated_place_in_cluster { unsigned rank, address; };
static emulated_place_in_cluster emulated_in_cluster(unsigned address) {
  if (address & EMULATED_REMOTE) return {address >> 24 & 15, address & 0xffffff};
  return {emulated_rank(), address};
}

// ---- programs ----

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

// ---- warps ----

// All threads of the warp are at the same instruction.
static void emulated_converge(const void *instruction) {
  static const void *at[EMULATED_CLUSTER * 1024];
  at[emulated_current] = instruction;
  __syncwarp();
  for (unsigned lane = 0; lane < 32; lane++)
    if (at[emulated_current / 32 * 32 + lane] != instruction) emulated_fail("an aligned instruction is not one of all threads of a warp");
  __syncwarp();
  at[emulated_current] = nullptr;
}

// ---- barriers ----

struct emulated_barrier {
  uint64_t valid : 6, phase : 1, pending : 18, count : 18;
  int64_t bytes : 21;
  void settle() {
    if (pending != 0 || bytes != 0) return;
    phase ^= 1;
    pending = count;
    emulated_progress++;
  }
};
static_assert(sizeof(emulated_barrier) == 8, "what a barrier takes");
static const unsigned EMULATED_BARRIER = 0x2b;
struct emulated_unready { unsigned thread, rank, address; };
static std::vector<emulated_unready> emulated_unready_barriers;  // whose initialisation others may not see yet

static emulated_barrier *emulated_barrier_at(unsigned address, unsigned rank) {
  if (address % 8 != 0) emulated_fail("a barrier is not aligned to 8 bytes");
  auto barrier = (emulated_barrier *)emulated_at(address, 8, rank);
  if (barrier->valid != EMULATED_BARRIER) emulated_fail("a barrier is not initialised");
  return barrier;
}
static void emulated_arrive(unsigned address, unsigned rank, long bytes) {
  emulated_barrier *barrier = emulated_barrier_at(address, rank);
  if (barrier->pending == 0) emulated_fail("more threads arrive at a barrier than it was initialised for");
  barrier->bytes += bytes;
  barrier->pending--;
  barrier->settle();
}

// ---- copies of tiles ----

// The order of chunks of 16 bytes within `span` bytes, which depends on the place of the line.
static unsigned emulated_swizzle(unsigned address, unsigned span) {
  return address ^ (address >> 3 & (span - 1) & ~15u);
}

// To the nearest number of tf32: what CUTLASS relies on copies to do (sm90_mma_tma_gmma_ss_warpspecialized.hpp).
static void emulated_round(unsigned char *place) {
  uint32_t bits;
  memcpy(&bits, place, 4);
  if ((bits >> 23 & 255) == 255) return;
  bits = (bits + 0x1000) & ~0x1fffu;
  memcpy(place, &bits, 4);
}
static void emulated_copy_tile(const CUtensorMap &map, unsigned to, unsigned barrier, const std::vector<int> &at,
                               unsigned blocks) {
  unsigned number = 1;
  if (map.valid != EMULATED_TENSOR_MAP || map.rank != at.size()) emulated_fail("a tile of another kind of tensor");
  if (to % 128 != 0) emulated_fail("a tile in shared memory is not aligned to 128 bytes");
  for (auto &one : emulated_unready_barriers)
    if (one.address == barrier && (blocks >> one.rank & 1)) emulated_fail("a copy arrives at a barrier before its initialisation is seen");
  for (unsigned i = 0; i < map.rank; i++) number *= (map.box[i] + map.steps[i] - 1) / map.steps[i];
  unsigned bytes = number * map.itemsize;
  for (unsigned rank = 0; rank < emulated_cluster_size; rank++) {
    if (!(blocks >> rank & 1)) continue;
    memset(emulated_at(to, bytes, rank), 0xff, bytes);  // the bytes of a NaN
    emulated_pending.push_back([=] {
      for (unsigned i = 0; i < number; i++) {
        const char *from = map.address;
        bool inside = true;
        for (unsigned axis = 0, rest = i; axis < map.rank; axis++) {
          unsigned count = (map.box[axis] + map.steps[axis] - 1) / map.steps[axis];
          int64_t index = at[axis] + (int64_t)(rest % count) * map.steps[axis];
          rest /= count;
          inside &= index >= 0 && index < map.extents[axis];
          from += index * (int64_t)(axis ? map.strides[axis - 1] : map.itemsize);
        }
        unsigned address = to + i * map.itemsize;
        unsigned char *place = emulated_at(map.swizzle ? emulated_swizzle(address, map.swizzle) : address, map.itemsize, rank);
        if (inside) memcpy(place, from, map.itemsize);
        if (inside && map.rounds) emulated_round(place);
        if (!inside) memset(place, 0, map.itemsize);
      }
      emulated_barrier *done = emulated_barrier_at(barrier, rank);
      done->bytes -= bytes;
      done->settle();
    });
  }
  if (blocks >> emulated_cluster_size) emulated_fail("a copy to a block that the cluster does not have");
}

// ---- copies of chunks by threads: in shared memory when they were waited for, and seen by products after a fence ----

struct emulated_chunk { unsigned to; const char *from; unsigned bytes; };
struct emulated_chunks {
  unsigned cluster;
  std::vector<emulated_chunk> open, waited_for;
  std::vector<std::vector<emulated_chunk>> groups;
};
static std::set<std::pair<unsigned, unsigned>> emulated_unseen_chunks;  // block of the cluster, address
static emulated_chunks &emulated_own_chunks() {
  static emulated_chunks of[EMULATED_CLUSTER * 1024];
  emulated_chunks &own = of[emulated_current];
  if (own.cluster != emulated_clusters) own = {emulated_clusters, {}, {}, {}};
  return own;
}
// Fails where a product begins to read 64 lines of 128 bytes of which a chunk is not seen yet: it reads them later here.
static void emulated_require_chunks(unsigned begin) {
  unsigned first = begin - begin % 1024;
  auto unseen = emulated_unseen_chunks.lower_bound({emulated_rank(), first});
  if (unseen != emulated_unseen_chunks.end() && *unseen < std::pair{emulated_rank(), first + 64 * 128})
    emulated_fail("a product begins before it sees what threads have copied");
}
static void emulated_copy_chunk(unsigned to, const char *from, unsigned size, unsigned bytes) {
  if (size != 16 || (bytes != 0 && bytes != 16) || to % 16 != 0 || (bytes != 0 && (uintptr_t)from % 16 != 0))
    emulated_fail("a chunk that is not 16 bytes, or not aligned to them");
  memset(emulated_at(to, 16, emulated_rank()), 0xff, 16);
  emulated_own_chunks().open.push_back({to, from, bytes});
  emulated_unseen_chunks.insert({emulated_rank(), to});
}
static void emulated_wait_for_chunks(unsigned pending) {
  emulated_chunks &own = emulated_own_chunks();
  while (own.groups.size() > pending) {
    own.waited_for.insert(own.waited_for.end(), own.groups.front().begin(), own.groups.front().end());
    own.groups.erase(own.groups.begin());
  }
}
static void emulated_show_chunks() {
  for (auto &chunk : emulated_own_chunks().waited_for) {
    unsigned char *place = emulated_at(chunk.to, 16, emulated_rank());
    memset(place, 0, 16);
    memcpy(place, chunk.from, chunk.bytes);
    emulated_unseen_chunks.erase({emulated_rank(), chunk.to});
  }
  emulated_own_chunks().waited_for.clear();
}

// ---- products ----

struct emulated_product {
  const void *instruction;
  uint64_t a, b;
  unsigned columns, depth;
  const emulated_type *type;
  bool accumulate, transpose_a, transpose_b;
  std::vector<uint32_t *> registers;
  std::shared_ptr<std::vector<uint32_t>> sums;  // what the registers will hold
};
struct emulated_products {
  unsigned cluster;
  bool fenced;
  std::vector<emulated_product> open;
  std::vector<std::vector<emulated_product>> groups;
};
static emulated_products &emulated_own_products() {
  static emulated_products of[EMULATED_CLUSTER * 1024];
  emulated_products &own = of[emulated_current];
  if (own.cluster != emulated_clusters) own = {emulated_clusters, false, {}, {}};
  return own;
}

// Element (x, k) of a matrix in shared memory: "Shared Memory Matrix Layout" and "Matrix Descriptor Format". `x` counts
// rows of a or columns of b, and lies along memory where `transposed`.
static float emulated_element(const emulated_product &product, uint64_t matrix, bool transposed, unsigned x, unsigned k) {
  static const unsigned SPANS[] = {0, 128, 64, 32};
  unsigned begin = (matrix & 0x3fff) << 4, leading = (matrix >> 16 & 0x3fff) << 4, stride = (matrix >> 32 & 0x3fff) << 4;
  unsigned span = SPANS[matrix >> 62], size = product.type->itemsize, chunk = 16 / size;
  if (matrix >> 49 & 7) emulated_fail("a matrix with a base offset");
  unsigned address;
  if (!transposed && span == 0) address = begin + x / 8 * stride + x % 8 * 16 + k / chunk * leading + k % chunk * size;
  else if (!transposed) address = begin + x / 8 * stride + x % 8 * span + k * size;
  else if (span == 0) address = begin + x / chunk * stride + k % 8 * 16 + k / 8 * leading + x % chunk * size;
  else
    address = begin + k / 8 * stride + k % 8 * span + x * size / span * leading + x * size % span;
  if (span) address = emulated_swizzle(address, span);
  const unsigned char *place = emulated_at(address & 0x3ffff, size, emulated_rank());
  return product.type->read(place);
}

// The part of a product that the registers of this thread hold. What its warp reads is read once.
static void emulated_multiply_group(const emulated_product &product, unsigned number) {
  static std::vector<float> a(16 * 32), b(256 * 32);
  static unsigned read_by = ~0u, read_number, read_cluster;
  unsigned warp = emulated_current / 32, lane = emulated_current % 32, depth = product.depth;
  if (read_by != warp || read_number != number || read_cluster != emulated_clusters) {
    for (unsigned k = 0; k < depth; k++) {
      for (unsigned row = 0; row < 16; row++)
        a[row * depth + k] = emulated_element(product, product.a, product.transpose_a, warp % 4 * 16 + row, k);
      for (unsigned column = 0; column < product.columns; column++)
        b[column * depth + k] = emulated_element(product, product.b, product.transpose_b, column, k);
    }
    read_by = warp;
    read_number = number;
    read_cluster = emulated_clusters;
  }
  for (unsigned i = 0; i < product.columns / 2; i++) {
    const float *row = &a[(lane / 4 + i / 2 % 2 * 8) * depth], *column = &b[(i / 4 * 8 + lane % 4 * 2 + i % 2) * depth];
    uint32_t &place = (*product.sums)[i];
    if (product.type->is_int()) {
      int sum = product.accumulate ? (int)place : 0;
      for (unsigned k = 0; k < depth; k++) sum += (int)row[k] * (int)column[k];
      place = (uint32_t)sum;
    } else {
      float sum = 0;
      if (product.accumulate) memcpy(&sum, &place, 4);
      for (unsigned k = 0; k < depth; k++) sum += row[k] * column[k];
      memcpy(&place, &sum, 4);
    }
  }
}

static void emulated_begin_product(emulated_product product) {
  static uint64_t given[EMULATED_CLUSTER * 1024][2];
  emulated_products &own = emulated_own_products();
  if (!own.fenced) emulated_fail("a product without a fence behind other uses of its registers");
  emulated_converge(product.instruction);
  uint64_t *mine = given[emulated_current], *first = given[emulated_current / 32 * 32];
  mine[0] = product.a;
  mine[1] = product.b;
  __syncwarp();
  emulated_require_chunks((product.a & 0x3fff) << 4);
  if (first[0] != mine[0] || first[1] != mine[1]) emulated_fail("the threads of a warp multiply different matrices");
  __syncwarp();
  own.groups.push_back(own.open);
  for (auto &group : own.groups)
    for (auto &earlier : group)
      if (earlier.registers == product.registers) product.sums = earlier.sums;
  own.groups.pop_back();
  if (!product.sums) {
    product.sums = std::make_shared<std::vector<uint32_t>>();
    for (uint32_t *place : product.registers) product.sums->push_back(*place);
  }
  for (uint32_t *place : product.registers) *place = ~0u;
  own.open.push_back(std::move(product));
}

static void emulated_wait_for_products(unsigned pending) {
  emulated_products &own = emulated_own_products();
  static unsigned numbers[EMULATED_CLUSTER * 1024];
  while (own.groups.size() > pending) {
    for (const emulated_product &product : own.groups.front()) {
      emulated_multiply_group(product, ++numbers[emulated_current]);
      for (size_t i = 0; i < product.registers.size(); i++) *product.registers[i] = (*product.sums)[i];
    }
    own.groups.erase(own.groups.begin());
    // Registers of products that are still under way hold nothing.
    for (auto &group : own.groups)
      for (auto &product : group)
        for (uint32_t *place : product.registers) *place = ~0u;
  }
  own.fenced = false;
}

// ---- the interpreter ----

emulated_program::emulated_program(const char *text) : instructions(new std::vector<emulated_instruction>) {
  emulated_reader reader = {text};
  bool scope = reader.take('{');
  for (reader.blanks(); *reader.at != '\0' && *reader.at != '}'; reader.blanks())
    instructions->push_back(reader.instruction());
  if (scope != reader.take('}')) emulated_fail("assembly with an open brace");
}

using locals_type = std::map<std::string, uint64_t>;

static uint64_t value(const emulated_node &node, const emulated_register *registers, locals_type &locals) {
  if (node.kind == emulated_node::NUMBER) return node.number;
  if (node.kind == emulated_node::MEMORY) return value(node.items[0], registers, locals);
  if (node.kind == emulated_node::NAME) {
    if (!locals.count(node.name)) emulated_fail(("assembly reads what it has not set: " + node.name).c_str());
    return locals[node.name];
  }
  const emulated_register &own = registers[node.number];
  if (own.place == nullptr) return own.value;
  uint64_t read = 0;
  memcpy(&read, own.place, own.bytes);
  return read;
}
static void set(const emulated_node &node, uint64_t value, emulated_register *registers, locals_type &locals) {
  if (node.kind == emulated_node::NAME) locals[node.name] = value;
  else if (registers[node.number].place == nullptr) emulated_fail("assembly changes an input");
  else memcpy(registers[node.number].place, &value, registers[node.number].bytes);
}

static void copy(const emulated_instruction &one, emulated_register *registers, locals_type &locals) {
  bool multicast = one.has("multicast::cluster");
  std::string rank = one.modifiers.at(4);
  if (one.name != "cp.async.bulk.tensor." + rank + ".shared::cluster.global.mbarrier::complete_tx::bytes" +
                      (multicast ? ".multicast::cluster" : ""))
    emulated_fail(("a copy that is not emulated: " + one.name).c_str());
  const emulated_node &source = one.operands.at(1);
  std::vector<int> place;
  for (auto &item : source.items.at(1).items) place.push_back((int)value(item, registers, locals));
  if (std::to_string(place.size()) + "d" != rank) emulated_fail("a tile with a wrong number of coordinates");
  unsigned blocks = multicast ? value(one.operands.at(3), registers, locals) : 1u << emulated_rank();
  emulated_copy_tile(*(const CUtensorMap *)value(source.items[0], registers, locals),
                     value(one.operands[0], registers, locals), value(one.operands.at(2), registers, locals), place, blocks);
  emulated_progress++;
}

static void multiply(const emulated_instruction &one, emulated_register *registers, locals_type &locals) {
  unsigned rows, columns, depth;
  const auto &m = one.modifiers;
  if (sscanf(m.at(4).c_str(), "m%un%uk%u", &rows, &columns, &depth) != 3 || rows != 64 || columns % 8 || columns > 256)
    emulated_fail("a product of a shape that there is not");
  emulated_product product = {&one};
  for (const emulated_type &type : EMULATED_TYPES)
    if (m.at(5) == type.sum && m.at(6) == type.name && m.at(7) == type.name) product.type = &type;
  if (product.type == nullptr) emulated_fail(("a product that is not emulated: " + one.name).c_str());
  bool is_int = product.type->is_int(), transposes = product.type->transposes;
  product.columns = columns;
  product.depth = depth;
  if (depth * product.type->itemsize != 32 || one.operands.size() != (is_int ? 4 : transposes ? 8 : 6) ||
      one.operands[0].items.size() != columns / 2)
    emulated_fail("a product with wrong operands");
  auto at = [&](unsigned i) { return value(one.operands[i], registers, locals); };
  product.a = at(1);
  product.b = at(2);
  product.accumulate = at(3);
  if (!is_int) {
    if (at(4) != 1 || at(5) != 1) emulated_fail("a product with a sign");
  }
  if (transposes) {
    product.transpose_a = at(6);
    product.transpose_b = at(7);
  }
  for (auto &sum : one.operands[0].items) product.registers.push_back((uint32_t *)registers[sum.number].place);
  emulated_begin_product(std::move(product));
}

static void execute(const emulated_instruction &one, emulated_register *registers, locals_type &locals) {
  auto at = [&](unsigned i) { return value(one.operands.at(i), registers, locals); };
  auto is = [&](const char *name) { return one.name == name; };
  auto begins = [&](const char *name) { return one.name.rfind(name, 0) == 0; };
  if (is(".reg")) return;
  if (is("setp.ne.b32")) return set(one.operands[0], (uint32_t)at(1) != (uint32_t)at(2), registers, locals);
  if (is("selp.b32")) return set(one.operands[0], at(3) ? at(1) : at(2), registers, locals);
  if (is("mapa.shared::cluster.u32")) {
    if (at(2) >= emulated_cluster_size) emulated_fail("an address in a block that the cluster does not have");
    return set(one.operands[0], EMULATED_REMOTE | at(2) << 24 | at(1), registers, locals);
  }
  if (is("mbarrier.init.shared::cta.b64")) {
    emulated_barrier fresh = {EMULATED_BARRIER, 0, at(1), at(1), 0};
    if (at(0) % 8 != 0) emulated_fail("a barrier is not aligned to 8 bytes");
    memcpy(emulated_at(at(0), 8, emulated_rank()), &fresh, 8);
    static unsigned cluster;
    if (cluster != emulated_clusters) emulated_unready_barriers.clear();
    cluster = emulated_clusters;
    return emulated_unready_barriers.push_back({emulated_current, emulated_rank(), (unsigned)at(0)});
  }
  if (is("fence.mbarrier_init.release.cluster")) {
    auto &unready = emulated_unready_barriers;
    for (size_t i = unready.size(); i-- > 0;)
      if (unready[i].thread == emulated_current) unready.erase(unready.begin() + i);
    return;
  }
  if (is("fence.proxy.async.shared::cta")) return emulated_show_chunks();
  if (is("cp.async.cg.shared.global"))
    return emulated_copy_chunk((unsigned)at(0), (const char *)at(1), (unsigned)at(2), (unsigned)at(3));
  if (is("cp.async.commit_group")) {
    emulated_chunks &own = emulated_own_chunks();
    own.groups.push_back(std::move(own.open));
    return own.open.clear();
  }
  if (is("cp.async.wait_group")) return emulated_wait_for_chunks(at(0));
  if (is("mbarrier.arrive.shared::cta.b64")) return emulated_arrive(at(1), emulated_rank(), 0);
  if (is("mbarrier.arrive.release.cluster.shared::cluster.b64")) {
    auto [rank, address] = emulated_in_cluster(at(1));
    return emulated_arrive(address, rank, 0);
  }
  if (is("mbarrier.arrive.expect_tx.shared::cta.b64")) return emulated_arrive(at(1), emulated_rank(), at(2));
  if (is("mbarrier.try_wait.parity.shared::cta.b64")) {
    auto over = [&] { return emulated_barrier_at(at(1), emulated_rank())->phase != at(2); };
    if (!over()) emulated_wait(POLLS);
    bool result = over();
    emulated_progress += result;
    return set(one.operands[0], result, registers, locals);
  }
  if (begins("cp.async.bulk.tensor.")) return copy(one, registers, locals);
  if (is("wgmma.fence.sync.aligned")) {
    emulated_converge(&one);
    emulated_own_products().fenced = true;
    return;
  }
  if (is("wgmma.commit_group.sync.aligned")) {
    emulated_converge(&one);
    emulated_products &own = emulated_own_products();
    own.groups.push_back(std::move(own.open));
    return own.open.clear();
  }
  if (is("wgmma.wait_group.sync.aligned")) {
    emulated_converge(&one);
    emulated_wait_for_products(at(0));
    return __syncwarp();
  }
  if (begins("wgmma.mma_async.sync.aligned.")) return multiply(one, registers, locals);
  if (is("setmaxnreg.inc.sync.aligned.u32") || is("setmaxnreg.dec.sync.aligned.u32")) {
    if (at(0) < 24 || at(0) > 256 || at(0) % 8) emulated_fail("a number of registers that a warp cannot have");
    return emulated_converge(&one);
  }
  if (is("barrier.cluster.arrive.release")) return;  // The wait follows it.
  if (is("barrier.cluster.wait.acquire")) return emulated_wait(WAITS_FOR_CLUSTER);
  emulated_fail(("an instruction that is not emulated: " + one.name).c_str());
}

void emulated_program::run(emulated_register *registers) const {
  locals_type locals;
  for (auto &one : *instructions) execute(one, registers, locals);
}
