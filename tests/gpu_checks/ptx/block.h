// Runs a kernel: block after block, and in a block one thread after the other, each until it meets others.
//
// Threads meet at barriers and, 32 at a time, at what a warp does as one; nothing else is assumed of their order, which
// is that of their numbers or shuffled. Asynchronous copies arrive as late as they may, when their thread waits for them.
#pragma once

#include <deque>
#include <random>

#include "account.h"
#include "memory.h"
#include "tensor_core.h"

namespace ptx {

struct Grid {
  unsigned x, y, threads;
  int64_t shared_bytes;
};

struct AsyncCopy {
  uint64_t to;
  int bytes;
  std::array<uint8_t, 16> data;
};

struct Thread {
  enum State { RUNS, AT_BARRIER, AT_WARP, ENDED } state = RUNS;
  int number = 0;
  size_t at = 0;  // in the code
  std::vector<uint64_t> slots;
  std::vector<AsyncCopy> open;
  std::deque<std::vector<AsyncCopy>> committed;
  uint64_t jumps = 0;  // a digest of the ways it took, which all lanes of its warp must take
};

class Block {
 public:
  Block(
      const Kernel& kernel, const std::vector<uint8_t>& parameter, GlobalMemory& global, const Grid& grid, unsigned x,
      unsigned y, Account* account)
      : kernel_(kernel), parameter_(parameter), global_(global), shared_(grid.shared_bytes), account_(account) {
    const std::map<std::string, uint64_t> specials{
        {"%ntid.x", grid.threads}, {"%ctaid.x", x}, {"%ctaid.y", y}, {"%nctaid.x", grid.x}, {"%nctaid.y", grid.y}};
    threads_.resize(grid.threads);
    for (unsigned number = 0; number < grid.threads; ++number) {
      Thread& thread = threads_[number];
      thread.number = static_cast<int>(number);
      thread.slots.assign(kernel.slots, 0x7fc0beef7fc0beef);  // nan, and no address
      for (const auto& [slot, value] : kernel.constants) {
        thread.slots[slot] = value;
      }
      for (const auto& [name, slot] : kernel.specials) {
        thread.slots[slot] = name == "%tid.x" ? number : specials.at(name);
      }
    }
  }

  void run(unsigned seed) {
    std::mt19937 random(seed);
    std::vector<size_t> order(threads_.size());
    for (size_t i = 0; i < order.size(); ++i) {
      order[i] = i;
    }
    for (bool goes_on = true; goes_on;) {
      if (seed) {
        std::shuffle(order.begin(), order.end(), random);
      }
      for (const size_t i : order) {
        run_thread(threads_[i]);
      }
      goes_on = meet_warps() || meet_block();
    }
  }

 private:
  const Kernel& kernel_;
  const std::vector<uint8_t>& parameter_;
  GlobalMemory& global_;
  SharedMemory shared_;
  std::vector<Thread> threads_;
  Account* account_;

  // Lanes that wait for one another go on together; false where none did.
  bool meet_warps() {
    bool has_met = false;
    for (size_t first = 0; first < threads_.size(); first += LANES) {
      Lanes lanes;
      int waiting = 0, together = 0;
      for (int lane = 0; lane < LANES; ++lane) {
        Thread& thread = threads_[first + lane];
        lanes[lane] = thread.slots.data();
        waiting += thread.state == Thread::AT_WARP;
        together += thread.state == Thread::AT_WARP && thread.at == threads_[first].at;
      }
      if (waiting == 0) {
        continue;
      }
      const Instruction& i = kernel_.code[threads_[first].at];
      if (together != LANES) {
        throw Error("lanes of a warp do not meet at " + i.text);
      }
      i.kind == Kind::LOAD_MATRICES ? load_matrices(i, lanes, shared_, static_cast<int>(first))
                                    : Product::run(i, lanes);
      for (int lane = 0; lane < LANES; ++lane) {
        ++threads_[first + lane].at, threads_[first + lane].state = Thread::RUNS;
      }
      has_met = true;
    }
    return has_met;
  }

  // All threads pass a barrier; false where all have ended.
  bool meet_block() {
    bool is_any = false;
    size_t ended = 0;
    for (const Thread& thread : threads_) {
      ended += thread.state == Thread::ENDED;
      const Instruction* i = thread.state == Thread::ENDED ? nullptr : &kernel_.code[thread.at];
      is_any |= i && i->kind == Kind::BARRIER_OR && (thread.slots[i->sources[0]] & 1);
      if (thread.jumps != threads_[thread.number / LANES * LANES].jumps) {
        throw Error("lanes of a warp took different ways at brx.idx.uni");
      }
    }
    if (account_) {
      account_->end_interval();
    }
    if (ended == threads_.size()) {
      return false;
    }
    if (ended) {
      throw Error("threads have ended while others wait at a barrier");
    }
    for (Thread& thread : threads_) {
      const Instruction& i = kernel_.code[thread.at++];
      if (i.kind == Kind::BARRIER_OR) {
        thread.slots[i.results[0]] = is_any;
      }
      thread.state = Thread::RUNS;
    }
    shared_.pass_barrier();
    return true;
  }

  void run_thread(Thread& thread) {
    while (thread.state == Thread::RUNS) {
      if (thread.at >= kernel_.code.size()) {
        throw Error("the code ends without ret");
      }
      const Instruction& i = kernel_.code[thread.at];
      const bool is_done = i.guard < 0 || (thread.slots[i.guard] & 1) != i.is_guard_inverted;
      try {
        if (account_) {
          account_->note(thread.number, thread.at, i, thread.slots.data(), is_done);
        }
        is_done ? execute(thread, i) : void(++thread.at);
      } catch (const Error& error) {
        throw Error(std::string(error.what()) + ": " + i.text + " (thread " + std::to_string(thread.number) + ")");
      }
    }
  }

  void execute(Thread& thread, const Instruction& i) {
    uint64_t* slots = thread.slots.data();
    switch (i.kind) {
      case Kind::COMPUTE: {
        uint64_t sources[4];
        for (size_t s = 0; s < i.sources.size(); ++s) {
          sources[s] = slots[i.sources[s]];
        }
        slots[i.results[0]] = i.compute(i.type, sources) & mask(i.result_bits);
        break;
      }
      case Kind::PACK:
      case Kind::UNPACK:
        repack(i, slots);
        break;
      case Kind::LOAD:
        load(thread, i);
        break;
      case Kind::STORE:
        store(thread, i);
        break;
      case Kind::COPY:
        begin_copy(thread, i);
        break;
      case Kind::COMMIT_COPIES:
        thread.committed.push_back(std::move(thread.open));
        thread.open.clear();
        break;
      case Kind::WAIT_FOR_COPIES:
        finish_copies(thread, i.count);
        break;
      case Kind::JUMP:
        thread.at = i.targets[0];
        return;
      case Kind::TABLE_JUMP: {
        const uint64_t index = slots[i.sources[0]] & mask(32);
        if (index >= i.targets.size()) {
          throw Error("no entry " + std::to_string(index) + " in a table of " + std::to_string(i.targets.size()));
        }
        thread.jumps = (thread.jumps + index + 1) * 0x9e3779b97f4a7c15;
        thread.at = i.targets[index];
        return;
      }
      case Kind::RETURN:
        thread.state = Thread::ENDED;
        return;
      case Kind::BARRIER:
      case Kind::BARRIER_OR:
        thread.state = Thread::AT_BARRIER;
        return;
      case Kind::LOAD_MATRICES:
      case Kind::MULTIPLY:
      case Kind::MULTIPLY_SPARSE:
        thread.state = Thread::AT_WARP;
        return;
    }
    ++thread.at;
  }

  static void repack(const Instruction& i, uint64_t* slots) {
    const int parts = static_cast<int>(std::max(i.sources.size(), i.results.size())), bits = i.type.bits / parts;
    if (i.kind == Kind::PACK) {
      uint64_t whole = 0;
      for (int part = 0; part < parts; ++part) {
        whole |= (slots[i.sources[part]] & mask(bits)) << bits * part;
      }
      slots[i.results[0]] = whole;
      return;
    }
    const uint64_t whole = slots[i.sources[0]];
    for (int part = 0; part < parts; ++part) {
      slots[i.results[part]] = whole >> bits * part & mask(bits);
    }
  }

  const uint8_t* source_of(const Thread& thread, const Instruction& i, int bytes) {
    const uint64_t address = thread.slots[i.sources[0]] + i.offset;
    if (i.space == Space::SHARED) {
      return shared_.read(address & mask(32), bytes, thread.number);
    }
    if (i.space == Space::GLOBAL) {
      return global_.read(address, bytes, i.is_read_only);
    }
    if (address + bytes > parameter_.size() || address % bytes) {
      throw Error("the parameter out of bounds");
    }
    return &parameter_[address];
  }

  void load(Thread& thread, const Instruction& i) {
    const int bytes = i.type.bits / 8;
    const uint8_t* from = source_of(thread, i, bytes * i.count);
    for (int at = 0; at < i.count; ++at) {
      uint64_t value = 0;
      std::memcpy(&value, from + at * bytes, bytes);
      thread.slots[i.results[at]] =
          i.type.kind == 's' ? widened(i.type, value) & mask(std::max(i.type.bits, 32)) : value;
    }
  }

  void store(Thread& thread, const Instruction& i) {
    const int bytes = i.type.bits / 8;
    const uint64_t address = thread.slots[i.sources[0]] + i.offset;
    if (i.space == Space::PARAM) {
      throw Error("a store to the parameter");
    }
    uint8_t* to = i.space == Space::SHARED ? shared_.write(address & mask(32), bytes * i.count, thread.number)
                                           : global_.write(address, bytes * i.count);
    for (int at = 0; at < i.count; ++at) {
      std::memcpy(to + at * bytes, &thread.slots[i.sources[1 + at]], bytes);
    }
  }

  // Of the global bytes the first are taken, as many as the last source says, and zeros for the rest.
  void begin_copy(Thread& thread, const Instruction& i) {
    AsyncCopy copy{thread.slots[i.sources[0]] & mask(32), i.count, {}};
    const uint64_t from = thread.slots[i.sources[1]] + i.offset, taken = thread.slots[i.sources[2]] & mask(32);
    if (taken != 0 && taken != static_cast<uint64_t>(i.count)) {
      throw Error("a copy of a part");
    }
    if (taken) {
      std::memcpy(copy.data.data(), global_.read(from, i.count, true), i.count);
    }
    shared_.copy(copy.to, copy.bytes, thread.number, 1);
    thread.open.push_back(copy);
  }

  void finish_copies(Thread& thread, int newer) {
    for (; static_cast<int>(thread.committed.size()) > newer; thread.committed.pop_front()) {
      for (const AsyncCopy& copy : thread.committed.front()) {
        std::memcpy(shared_.copy(copy.to, copy.bytes, thread.number, -1), copy.data.data(), copy.bytes);
      }
    }
  }
};

// `parameter` is the kernel's only one, by its bytes.
inline void launch(
    const Kernel& kernel, const void* parameter, int bytes, GlobalMemory& global, const Grid& grid, unsigned seed,
    Account* account) {
  if (bytes != kernel.parameter_bytes || static_cast<int>(grid.threads) > kernel.most_threads) {
    throw Error("the launch does not fit the kernel's parameter or its most threads");
  }
  const auto* first = static_cast<const uint8_t*>(parameter);
  const std::vector<uint8_t> copy(first, first + bytes);
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      Block(kernel, copy, global, grid, x, y, account).run(seed ? seed + y * grid.x + x : 0);
      if (account) {
        account->end_block();
      }
    }
  }
}

}  // namespace ptx
