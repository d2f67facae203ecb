// What a kernel's blocks take, counted where it is executed: instructions of warps, sectors that are loaded and stored,
// and the cycles of an in-order machine with few assumptions. It is an account of PTX, not of the machine code made of it.
#pragma once

#include <algorithm>
#include <cstdio>
#include <set>
#include <tuple>

#include "arithmetic.h"

namespace ptx {

// Of a block, between two barriers, or the sum of several.
struct Interval {
  int64_t barriers = 0, instructions = 0, cycles = 0, chain = 0, shared_accesses = 0;
  int64_t sectors = 0, stored_bytes = 0, loaded_sectors = 0, sums = 0;
  std::set<size_t> code;  // places in it that some thread comes to

  void add(const Interval& other) {
    barriers += other.barriers, instructions += other.instructions, cycles += other.cycles, chain += other.chain;
    shared_accesses += other.shared_accesses, sectors += other.sectors, stored_bytes += other.stored_bytes;
    loaded_sectors += other.loaded_sectors, code.insert(other.code.begin(), other.code.end());
  }
};

class Account {
 public:
  explicit Account(const Kernel& kernel) : slots_(kernel.slots), length_(kernel.code.size()) {}

  // Called for each instruction that a thread comes to; `is_done` is false where its guard leaves it out.
  void note(int thread, size_t at, const Instruction& i, const uint64_t* slots, bool is_done) {
    Lane& lane = lane_of(thread);
    int64_t& start = lane.now;
    for (const int source : i.sources) {
      start = std::max(start, lane.ready[source]);
    }
    start = std::max(start, i.guard < 0 ? 0 : lane.ready[i.guard]) + 1;
    for (const int result : i.results) {
      lane.ready[result] = start + latency(i);
    }
    const bool is_jump = i.kind == Kind::JUMP || i.kind == Kind::TABLE_JUMP;
    start += is_jump && is_done ? JUMP_CYCLES : 0;
    lane.sums += i.kind == Kind::TABLE_JUMP || i.kind == Kind::MULTIPLY || i.kind == Kind::MULTIPLY_SPARSE;
    const int64_t times = ++lane.counts[at];
    Warp& warp = warp_of(thread / 32);
    if (times > warp.counts[at]) {
      warp.counts[at] = times, ++warp.instructions;
      warp.shared_accesses += i.space == Space::SHARED && (i.kind == Kind::LOAD || i.kind == Kind::STORE) ? i.count : 0;
    }
    if (is_done && reads_memory(i, slots)) {
      const int address = i.kind == Kind::COPY;  // behind the shared address
      warp.loaded.insert({at, times, (slots[i.sources[address]] + i.offset) / SECTOR_BYTES});
    }
    if (is_done && i.kind == Kind::STORE && i.space == Space::GLOBAL) {
      const int bytes = i.count * i.type.bits / 8;
      warp.sectors.insert({at, times, (slots[i.sources[0]] + i.offset) / SECTOR_BYTES});
      stored_bytes_ += bytes;
    }
  }

  // All threads have come to a barrier, or ended.
  void end_interval() {
    Interval here;
    int64_t issued[SCHEDULERS] = {}, chain = 0;
    for (const auto& [thread, lane] : lanes_) {
      chain = std::max(chain, lane.now);
      here.sums += lane.sums;
    }
    for (const auto& [number, warp] : warps_) {
      issued[number % SCHEDULERS] += warp.instructions;
      here.instructions += warp.instructions, here.shared_accesses += warp.shared_accesses;
      for (size_t at = 0; at < length_; ++at) {
        if (warp.counts[at] > 0) {
          here.code.insert(at);
        }
      }
      here.sectors += static_cast<int64_t>(warp.sectors.size());
      here.loaded_sectors += static_cast<int64_t>(warp.loaded.size());
    }
    here.barriers = 1, here.stored_bytes = stored_bytes_, here.chain = chain;
    here.cycles = std::max({*std::max_element(issued, issued + SCHEDULERS), chain, here.shared_accesses});
    intervals_.push_back(here);
    lanes_.clear(), warps_.clear(), stored_bytes_ = 0;
  }

  // After each block. Intervals with table jumps or products are its sums; what came behind the last of them is its end,
  // what came before the first barrier its start, and what is left between them its copies.
  void end_block() {
    size_t end = intervals_.size();
    while (end > 0 && intervals_[end - 1].sums == 0) {
      --end;
    }
    for (size_t at = 0; at < intervals_.size(); ++at) {
      const bool has_sums = intervals_[at].sums > 0;
      (at >= end ? end_ : has_sums ? sums_ : at == 0 ? start_ : copies_).add(intervals_[at]);
    }
    ++blocks_, intervals_.clear();
  }

  void print(std::FILE* to) const {
    std::fprintf(to, "{\"blocks\": %lld", static_cast<long long>(blocks_));
    for (const auto& [name, part] : {std::pair{"start", start_}, {"copies", copies_}, {"sums", sums_}, {"end", end_}}) {
      std::fprintf(
          to,
          ", \"%s\": {\"barriers\": %lld, \"instructions\": %lld, \"cycles\": %lld, \"chain\": %lld, "
          "\"shared_accesses\": %lld, \"sectors\": %lld, \"stored_bytes\": %lld, \"loaded_sectors\": %lld, "
          "\"code\": %zu}",
          name, static_cast<long long>(part.barriers), static_cast<long long>(part.instructions),
          static_cast<long long>(part.cycles), static_cast<long long>(part.chain),
          static_cast<long long>(part.shared_accesses), static_cast<long long>(part.sectors),
          static_cast<long long>(part.stored_bytes), static_cast<long long>(part.loaded_sectors), part.code.size());
    }
    std::fprintf(to, "}\n");
  }

 private:
  static constexpr int SCHEDULERS = 4, SECTOR_BYTES = 32, JUMP_CYCLES = 7;
  struct Lane {
    int64_t now = 0, sums = 0;
    std::vector<int64_t> ready;  // by slot
    std::vector<int64_t> counts;  // by place in the code
  };
  struct Warp {
    int64_t instructions = 0, shared_accesses = 0;
    std::vector<int64_t> counts;
    std::set<std::tuple<size_t, int64_t, uint64_t>> sectors, loaded;
  };
  size_t slots_, length_;
  std::map<int, Lane> lanes_;
  std::map<int, Warp> warps_;
  std::vector<Interval> intervals_;
  Interval start_, copies_, sums_, end_;
  int64_t blocks_ = 0, stored_bytes_ = 0;

  // Empty ones, of as many slots and places as the kernel has.
  Lane& lane_of(int thread) {
    const auto [found, is_new] = lanes_.try_emplace(thread);
    if (is_new) {
      found->second.ready.resize(slots_), found->second.counts.resize(length_);
    }
    return found->second;
  }
  Warp& warp_of(int number) {
    const auto [found, is_new] = warps_.try_emplace(number);
    if (is_new) {
      found->second.counts.resize(length_);
    }
    return found->second;
  }

  static bool reads_memory(const Instruction& i, const uint64_t* slots) {
    return (i.kind == Kind::LOAD && i.space == Space::GLOBAL) ||
        (i.kind == Kind::COPY && (slots[i.sources[2]] & mask(32)) != 0);
  }

  static int64_t latency(const Instruction& i) {
    if (i.kind == Kind::LOAD) {
      return i.space == Space::SHARED ? 23 : i.space == Space::GLOBAL ? 236 : 0;
    }
    return 4;
  }
};

}  // namespace ptx
