// What inline assembly of headers does, for those instructions of sm_90a that tcomp's headers have: barriers in shared
// memory, copies of tiles, products by groups of warps, clusters. The text itself is interpreted, so a wrong modifier
// shows. Source: PTX ISA 9.0.
#include <map>
#include <string>

#include "emulated_assembly.h"
#include "emulated_copies.h"
#include "emulated_products.h"

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

static std::vector<int> coordinates(const emulated_node &tensor, const std::string &rank, emulated_register *registers,
                                    locals_type &locals) {
  std::vector<int> place;
  for (auto &item : tensor.items.at(1).items) place.push_back((int)value(item, registers, locals));
  if (std::to_string(place.size()) + "d" != rank) emulated_fail("a tile with a wrong number of coordinates");
  return place;
}

static void store_tile(const emulated_instruction &one, emulated_register *registers, locals_type &locals) {
  const emulated_node &target = one.operands.at(0);
  auto &map = *(const CUtensorMap *)value(target.items[0], registers, locals);
  emulated_store_tile(map, value(one.operands.at(1), registers, locals),
                      emulated_lines_of_tile(map, coordinates(target, one.modifiers.at(4), registers, locals)));
  emulated_progress++;
}

static void copy(const emulated_instruction &one, emulated_register *registers, locals_type &locals) {
  bool multicast = one.has("multicast::cluster"), im2col = one.has("im2col");
  std::string rank = one.modifiers.at(4);
  if (one.name == "cp.async.bulk.tensor." + rank + ".global.shared::cta.bulk_group") return store_tile(one, registers, locals);
  if (one.name != "cp.async.bulk.tensor." + rank + ".shared::cluster.global" + (im2col ? ".im2col" : "") +
                      ".mbarrier::complete_tx::bytes" + (multicast ? ".multicast::cluster" : ""))
    emulated_fail(("a copy that is not emulated: " + one.name).c_str());
  const emulated_node &source = one.operands.at(1);
  std::vector<int> place = coordinates(source, rank, registers, locals);
  std::vector<unsigned> offsets;
  if (im2col)
    for (auto &item : one.operands.at(3).items) offsets.push_back((unsigned)value(item, registers, locals));
  unsigned blocks = multicast ? value(one.operands.at(3 + im2col), registers, locals) : 1u << emulated_rank();
  auto &map = *(const CUtensorMap *)value(source.items[0], registers, locals);
  emulated_copy_tile(map, value(one.operands[0], registers, locals), value(one.operands.at(2), registers, locals),
                     im2col ? emulated_lines_of_pixels(map, place, offsets) : emulated_lines_of_tile(map, place), blocks);
  emulated_progress++;
}

// Four matrices of 8 rows of 16 bytes: thread i gives row i % 8 of matrix i / 8, and 4 bytes of row i / 4 of each.
static void write_matrices(const emulated_instruction &one, emulated_register *registers, locals_type &locals) {
  static unsigned rows[EMULATED_CLUSTER * 1024];
  emulated_converge(&one);
  unsigned lane = emulated_current % 32, *of_warp = rows + emulated_current / 32 * 32;
  of_warp[lane] = value(one.operands.at(0), registers, locals);
  if (of_warp[lane] % 16) emulated_fail("a row of a matrix that is not aligned to 16 bytes");
  __syncwarp();
  for (unsigned i = 0; i < 4; i++)
    emulated_write(of_warp[i * 8 + lane / 4] + lane % 4 * 4, value(one.operands.at(1).items.at(i), registers, locals));
  __syncwarp();
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
  const emulated_node &left = one.operands.at(1);
  bool of_registers = left.kind == emulated_node::LIST;
  if (depth * product.type->itemsize != 32 || (of_registers && (!transposes || left.items.size() != 4)) ||
      one.operands.size() != (is_int ? 4u : transposes ? 8u - of_registers : 6u) || one.operands[0].items.size() != columns / 2)
    emulated_fail("a product with wrong operands");
  auto at = [&](unsigned i) { return value(one.operands[i], registers, locals); };
  std::vector<uint32_t> own_left;
  if (of_registers)
    for (auto &item : left.items) own_left.push_back((uint32_t)value(item, registers, locals));
  else product.a = at(1);
  product.b = at(2);
  product.accumulate = at(3);
  if (!is_int) {
    if (at(4) != 1 || at(5) != 1) emulated_fail("a product with a sign");
  }
  if (transposes) {
    product.transpose_a = of_registers ? 0 : at(6);
    product.transpose_b = at(7 - of_registers);
  }
  for (auto &sum : one.operands[0].items) product.registers.push_back((uint32_t *)registers[sum.number].place);
  emulated_begin_product(std::move(product), own_left);
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
  if (is("stmatrix.sync.aligned.m8n8.x4.shared.b16")) return write_matrices(one, registers, locals);
  if (is("st.shared.v2.b32")) {
    if (at(0) % 8 != 0) emulated_fail("two words that are not aligned to 8 bytes");
    for (unsigned i = 0; i < 2; i++) emulated_write(at(0) + 4 * i, value(one.operands[1].items.at(i), registers, locals));
    return;
  }
  if (is("cp.async.bulk.commit_group")) return emulated_commit_stores();
  if (is("cp.async.bulk.wait_group.read")) return emulated_wait_for_stores(at(0));
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
  if (is("bar.sync") || is("bar.arrive")) {
    emulated_converge(&one);
    return emulated_turn_arrive(at(0), at(1), is("bar.sync"));
  }
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
