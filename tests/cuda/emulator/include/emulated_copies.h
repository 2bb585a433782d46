// Barriers in shared memory, what brings data there, copies of tiles and of chunks, and stores of tiles.
//
// What hardware does on its own is seen as late as it may be, and what it will overwrite is lost at once.
#pragma once
#include <memory>
#include <set>

#include "cuda.h"
#include "emulated_lines.h"
#include "emulated_ptx.h"

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

// Barriers by number, for so many threads of a block, of which some only arrive.
struct emulated_turn { unsigned cluster, arrived, phase; };
static void emulated_turn_arrive(unsigned number, unsigned threads, bool waits) {
  static emulated_turn all[EMULATED_CLUSTER][16];
  if (number == 0 || number > 15 || threads == 0 || threads % 32) emulated_fail("a barrier of a number or of threads that there are not");
  emulated_turn &one = all[emulated_rank()][number];
  if (one.cluster != emulated_clusters) one = {emulated_clusters, 0, 0};
  unsigned phase = one.phase;
  emulated_progress++;
  if (++one.arrived == threads) one = {one.cluster, 0, phase + 1};
  while (waits && one.phase == phase) emulated_wait(POLLS);
  emulated_progress += waits;
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
// `each(address, place)` for the elements of `lines` of `map` that lie in shared memory from `tile` on: where an element
// is there, and where in the tensor, nullptr beyond its ends.
template <typename Each>
static void emulated_walk_tile(const CUtensorMap &map, unsigned tile, const emulated_lines &lines, Each each) {
  for (unsigned i = 0; i < lines.size() * map.box[0]; i++) {
    char *place = map.address;
    bool inside = true;
    for (unsigned axis = 0; axis < map.rank; axis++) {
      int64_t index = lines[i / map.box[0]][axis] + (axis ? 0 : i % map.box[0]);
      inside &= index >= 0 && index < map.extents[axis];
      place += index * (int64_t)(axis ? map.strides[axis - 1] : map.itemsize);
    }
    unsigned address = tile + i * map.itemsize;
    each(map.swizzle ? emulated_swizzle(address, map.swizzle) : address, inside ? place : nullptr);
  }
}
static unsigned emulated_bytes(const CUtensorMap &map, unsigned tile, const emulated_lines &lines) {
  if (tile % 128 != 0) emulated_fail("a tile in shared memory is not aligned to 128 bytes");
  return lines.size() * map.box[0] * map.itemsize;
}
static void emulated_copy_tile(const CUtensorMap &map, unsigned to, unsigned barrier, const emulated_lines &lines,
                               unsigned blocks) {
  unsigned bytes = emulated_bytes(map, to, lines);
  for (auto &one : emulated_unready_barriers)
    if (one.address == barrier && (blocks >> one.rank & 1)) emulated_fail("a copy arrives at a barrier before its initialisation is seen");
  for (unsigned rank = 0; rank < emulated_cluster_size; rank++) {
    if (!(blocks >> rank & 1)) continue;
    memset(emulated_at(to, bytes, rank), 0xff, bytes);  // the bytes of a NaN
    emulated_pending.push_back([=] {
      emulated_walk_tile(map, to, lines, [&](unsigned address, const char *from) {
        unsigned char *place = emulated_at(address, map.itemsize, rank);
        if (from) memcpy(place, from, map.itemsize);
        if (from && map.rounds) emulated_round(place);
        if (!from) memset(place, 0, map.itemsize);
      });
      emulated_barrier *done = emulated_barrier_at(barrier, rank);
      done->bytes -= bytes;
      done->settle();
    });
  }
  if (blocks >> emulated_cluster_size) emulated_fail("a copy to a block that the cluster does not have");
}

// ---- copies of chunks by threads: in shared memory when they were waited for, and seen by products after a fence ----

// Places in shared memory, (block of the cluster, address), that threads have written, and whose contents copies and
// products do not see yet, which pass by another way.
static std::set<std::pair<unsigned, unsigned>> &emulated_unseen() {
  static std::set<std::pair<unsigned, unsigned>> places;
  static unsigned cluster;
  if (cluster != emulated_clusters) places.clear();
  cluster = emulated_clusters;
  return places;
}
static bool emulated_sees(unsigned begin, unsigned bytes) {
  auto unseen = emulated_unseen().lower_bound({emulated_rank(), begin});
  return unseen == emulated_unseen().end() || *unseen >= std::pair{emulated_rank(), begin + bytes};
}

struct emulated_chunk { unsigned to; const char *from; unsigned bytes; };
struct emulated_chunks {
  unsigned cluster;
  std::vector<emulated_chunk> open, waited_for;
  std::vector<std::vector<emulated_chunk>> groups;
  std::vector<unsigned> written;  // by other instructions, since the last fence
};
static emulated_chunks &emulated_own_chunks() {
  static emulated_chunks of[EMULATED_CLUSTER * 1024];
  emulated_chunks &own = of[emulated_current];
  if (own.cluster != emulated_clusters) own = {emulated_clusters, {}, {}, {}, {}};
  return own;
}
// Fails where a product begins to read 64 lines of 128 bytes of which a chunk is not seen yet: it reads them later here.
static void emulated_require_chunks(unsigned begin) {
  if (!emulated_sees(begin - begin % 1024, 64 * 128)) emulated_fail("a product begins before it sees what threads have copied");
}
static void emulated_copy_chunk(unsigned to, const char *from, unsigned size, unsigned bytes) {
  if (size != 16 || (bytes != 0 && bytes != 16) || to % 16 != 0 || (bytes != 0 && (uintptr_t)from % 16 != 0))
    emulated_fail("a chunk that is not 16 bytes, or not aligned to them");
  memset(emulated_at(to, 16, emulated_rank()), 0xff, 16);
  emulated_own_chunks().open.push_back({to, from, bytes});
  emulated_unseen().insert({emulated_rank(), to});
}
static void emulated_wait_for_chunks(unsigned pending) {
  emulated_chunks &own = emulated_own_chunks();
  while (own.groups.size() > pending) {
    own.waited_for.insert(own.waited_for.end(), own.groups.front().begin(), own.groups.front().end());
    own.groups.erase(own.groups.begin());
  }
}
static void emulated_show_chunks() {
  emulated_chunks &own = emulated_own_chunks();
  for (auto &chunk : own.waited_for) {
    unsigned char *place = emulated_at(chunk.to, 16, emulated_rank());
    memset(place, 0, 16);
    memcpy(place, chunk.from, chunk.bytes);
    emulated_unseen().erase({emulated_rank(), chunk.to});
  }
  own.waited_for.clear();
  for (unsigned address : own.written) emulated_unseen().erase({emulated_rank(), address});
  own.written.clear();
}

// ---- stores of tiles: what threads have written is read as late as it may be ----

static void emulated_write(unsigned address, uint32_t word) {
  memcpy(emulated_at(address, 4, emulated_rank()), &word, 4);
  emulated_unseen().insert({emulated_rank(), address});
  emulated_own_chunks().written.push_back(address);
}

struct emulated_stores {
  unsigned cluster;
  std::shared_ptr<unsigned> open;  // stores that have not read yet
  std::vector<std::shared_ptr<unsigned>> groups;
};
static emulated_stores &emulated_own_stores() {
  static emulated_stores of[EMULATED_CLUSTER * 1024];
  emulated_stores &own = of[emulated_current];
  if (own.cluster != emulated_clusters) own = {emulated_clusters, std::make_shared<unsigned>(0), {}};
  return own;
}
static void emulated_store_tile(const CUtensorMap &map, unsigned from, const emulated_lines &lines) {
  unsigned rank = emulated_rank(), bytes = emulated_bytes(map, from, lines);
  // CUDA C++ Programming Guide, "Negative indices and out of bounds".
  for (int64_t index : lines.front())
    if (index < 0) emulated_fail("a store of a tile that begins before the first element of an axis");
  if (!emulated_sees(from, bytes)) emulated_fail("a tile is stored before what threads wrote to it is seen");
  std::shared_ptr<unsigned> left = emulated_own_stores().open;
  ++*left;
  emulated_pending.push_back([=] {
    emulated_walk_tile(map, from, lines, [&](unsigned address, char *place) {
      if (place) memcpy(place, emulated_at(address, map.itemsize, rank), map.itemsize);
    });
    --*left;
  });
}
static void emulated_commit_stores() {
  emulated_stores &own = emulated_own_stores();
  own.groups.push_back(own.open);
  own.open = std::make_shared<unsigned>(0);
}
static void emulated_wait_for_stores(unsigned pending) {
  emulated_stores &own = emulated_own_stores();
  while (own.groups.size() > pending) {
    while (*own.groups.front() != 0) emulated_wait(POLLS);
    own.groups.erase(own.groups.begin());
    emulated_progress++;
  }
}
