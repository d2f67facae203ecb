// Runs CUDA kernels on a processor, so that they can be tested and sanitized without a GPU.
//
// Each CUDA thread of a block is a fiber; blocks run one after the other. A fiber runs until a barrier or its end;
// the order in which fibers are resumed is that of their numbers, or shuffled anew for every round. 32 fibers are a
// warp, and meet for what a warp does as one. What ends the program with a message: threads that wait at different
// barriers, lanes that meet for different things, a barrier that some threads have left behind, misaligned copies. What
// the sanitizers add: AddressSanitizer sees shared and global memory as blocks of their exact size;
// UndefinedBehaviorSanitizer sees misaligned vectors; ThreadSanitizer takes every fiber for a thread that only barriers
// synchronize, and so sees each missing one.
//
// An asynchronous copy happens as late as it may: when its thread waits for it. Shared memory starts as nan.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};

inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace simt {

// The emulator's own memory accesses are no part of the search for races.
struct Unwatched {
#if defined(__SANITIZE_THREAD__)
  Unwatched() { AnnotateIgnoreReadsBegin("", 0), AnnotateIgnoreWritesBegin("", 0); }
  ~Unwatched() { AnnotateIgnoreWritesEnd("", 0), AnnotateIgnoreReadsEnd("", 0); }
#else
  Unwatched() {}
#endif
};

struct Copy {
  void* to;
  const void* from;
  int bytes;
  bool is_inside;
  void run() const {
    if (is_inside) {
      std::memcpy(to, from, bytes);
    } else {
      std::memset(to, 0, bytes);
    }
  }
};

struct Fiber {
  enum State { READY, WAITING, DONE };
  uint3 thread;
  State state = READY;
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  std::deque<std::vector<Copy>> groups;  // asynchronous copies, committed
  std::vector<Copy> open_group;
  void* fake_stack = nullptr;
  void* watched = nullptr;  // ThreadSanitizer's name for it
};

constexpr size_t STACK_BYTES = 128 * 1024;
constexpr unsigned WARP = 32;

struct Warp {
  unsigned arrived = 0;
  const char* meeting = nullptr;
  void* parts[WARP];  // what each lane brings
};

struct Block {
  uint3 index;
  dim3 grid, size;
  unsigned char* shared = nullptr;
  const std::function<void()>* kernel = nullptr;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  int votes[2] = {};  // for the barrier of this generation and the next
  ucontext_t scheduler;
  int barrier_line = 0;
  unsigned waiting = 0, done = 0;
  unsigned generation = 0;  // barriers passed
  // What ThreadSanitizer takes for the barrier: two in turn, or a thread that comes late out of one barrier would seem
  // to follow those that are at the next already.
  char barriers[2] = {}, edges = 0;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_size = 0;
  void* scheduler_watched = nullptr;
};

inline Block* block = nullptr;
inline Fiber* fiber = nullptr;

#if defined(__SANITIZE_THREAD__)
#define SIMT_UNWATCHED __attribute__((no_sanitize("thread"), noinline))
#else
#define SIMT_UNWATCHED
#endif
SIMT_UNWATCHED inline Fiber* current() { return fiber; }
SIMT_UNWATCHED inline Block* current_block() { return block; }

[[noreturn]] inline void stop(const char* what) {
  const uint3 b = block ? block->index : uint3{}, t = fiber ? fiber->thread : uint3{};
  std::fprintf(stderr, "simt: %s (block %u,%u,%u thread %u)\n", what, b.x, b.y, b.z, t.x);
  std::_Exit(86);
}

inline void release(void* at) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(at);
#else
  (void)at;
#endif
}

inline void acquire(void* at) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(at);
#else
  (void)at;
#endif
}

SIMT_UNWATCHED inline void leave(Fiber* from, bool is_last) {
  (void)is_last;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(
      is_last ? nullptr : &from->fake_stack, block->scheduler_stack, block->scheduler_stack_size);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(block->scheduler_watched, 1);
#endif
  swapcontext(&from->context, &block->scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from->fake_stack, &block->scheduler_stack, &block->scheduler_stack_size);
#endif
}

inline void run_fiber() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block->scheduler_stack, &block->scheduler_stack_size);
#endif
  acquire(&current_block()->edges);
  (*current_block()->kernel)();
  release(&current_block()->edges);
  {
    Unwatched unwatched;
    if (!current()->groups.empty() || !current()->open_group.empty()) {
      for (const auto& group : current()->groups) {
        if (!group.empty()) {
          stop("a thread ends with copies under way");
        }
      }
    }
    current()->state = Fiber::DONE;
    ++current_block()->done;
  }
  leave(current(), true);
}

// Returns whether any thread of the block votes.
inline int barrier(int line, int vote = 0) {
  Fiber* self = current();
  Block* all = current_block();
  char* here = nullptr;
  int* votes = nullptr;
  {
    Unwatched unwatched;
    here = &all->barriers[all->generation % 2];
    votes = &all->votes[all->generation % 2];
    *votes |= vote;
  }
  release(here);
  {
    Unwatched unwatched;
    if (all->waiting && all->barrier_line != line) {
      stop("threads wait at different barriers");
    }
    all->barrier_line = line;
    self->state = Fiber::WAITING;
    if (++all->waiting + all->done == all->fibers.size()) {
      if (all->done) {
        stop("a barrier after some threads have ended");
      }
      all->waiting = 0;
      ++all->generation;
      all->votes[all->generation % 2] = 0;
      for (Fiber& other : all->fibers) {
        other.state = Fiber::READY;
      }
    }
  }
  leave(self, false);
  acquire(here);
  Unwatched unwatched;
  return *votes;
}

// The lanes of a warp wait for each other; then combine(parts) makes of what they brought what each takes away. It
// orders nothing else: what one lane has written, another may not read without a barrier.
template <typename Part>
void meet(const char* meeting, Part& part, void (*combine)(Part* const* parts)) {
  Fiber* self = current();
  {
    Unwatched unwatched;
    const size_t number = self - current_block()->fibers.data();
    Warp& warp = current_block()->warps[number / WARP];
    if (warp.arrived && warp.meeting != meeting) {
      stop("the lanes of a warp do different things");
    }
    warp.meeting = meeting;
    warp.parts[number % WARP] = &part;
    self->state = Fiber::WAITING;
    if (++warp.arrived == WARP) {
      warp.arrived = 0;
      Part* parts[WARP];
      for (unsigned lane = 0; lane < WARP; ++lane) {
        parts[lane] = static_cast<Part*>(warp.parts[lane]);
        current_block()->fibers[number / WARP * WARP + lane].state = Fiber::READY;
      }
      combine(parts);
      return;
    }
  }
  leave(self, false);
}

SIMT_UNWATCHED inline void enter(Fiber* to) {
  fiber = to;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&block->scheduler_fake_stack, to->stack.get(), STACK_BYTES);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to->watched, 1);
#endif
  swapcontext(&block->scheduler, &to->context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(block->scheduler_fake_stack, nullptr, nullptr);
#endif
  fiber = nullptr;
}

inline void prepare(Fiber& of, unsigned number, const dim3& size) {
  of.state = Fiber::READY;
  of.groups.clear();
  of.open_group.clear();
  of.thread = {number % size.x, number / size.x % size.y, number / (size.x * size.y)};
  if (!of.stack) {
    of.stack.reset(new char[STACK_BYTES]);
  }
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(of.stack.get(), STACK_BYTES);
#endif
  getcontext(&of.context);
  of.context.uc_stack.ss_sp = of.stack.get();
  of.context.uc_stack.ss_size = STACK_BYTES;
  of.context.uc_link = nullptr;
  makecontext(&of.context, run_fiber, 0);
#if defined(__SANITIZE_THREAD__)
  of.watched = __tsan_create_fiber(0);
#endif
}

inline void run_block(Block& all, uint3 index, size_t shared_bytes, std::mt19937* order_source) {
  all.index = index;
  all.waiting = all.done = 0;
  all.votes[0] = all.votes[1] = 0;
  const size_t size = (shared_bytes + 15) / 16 * 16;
  std::unique_ptr<unsigned char, decltype(&std::free)> shared(
      static_cast<unsigned char*>(std::aligned_alloc(16, std::max<size_t>(size, 16))), &std::free);
  std::memset(shared.get(), 0xff, std::max<size_t>(size, 16));
  all.shared = shared.get();
  block = &all;
  std::vector<Fiber*> order;
  for (unsigned i = 0; i < all.fibers.size(); ++i) {
    prepare(all.fibers[i], i, all.size);
    order.push_back(&all.fibers[i]);
  }
#if defined(__SANITIZE_THREAD__)
  all.scheduler_watched = __tsan_get_current_fiber();
#endif
  release(&all.edges);
  while (all.done < all.fibers.size()) {
    bool has_moved = false;
    if (order_source) {
      std::shuffle(order.begin(), order.end(), *order_source);
    }
    for (Fiber* next : order) {
      if (next->state == Fiber::READY) {
        has_moved = true;
        enter(next);
      }
    }
    if (!has_moved) {
      stop("no thread of the block can go on");
    }
  }
  acquire(&all.edges);
#if defined(__SANITIZE_THREAD__)
  for (Fiber& each : all.fibers) {
    __tsan_destroy_fiber(each.watched);
  }
#endif
  block = nullptr;
}

// Run `kernel` as grid × size threads; a seed other than 0 shuffles the threads' order.
inline void launch(dim3 grid, dim3 size, size_t shared_bytes, unsigned seed, const std::function<void()>& kernel) {
  Block all;
  all.grid = grid;
  all.size = size;
  all.kernel = &kernel;
  all.fibers.resize(size_t{size.x} * size.y * size.z);
  all.warps.resize((all.fibers.size() + WARP - 1) / WARP);
  std::mt19937 source(seed);
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        run_block(all, {x, y, z}, shared_bytes, seed ? &source : nullptr);
      }
    }
  }
}

}  // namespace simt

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (simt::current()->thread)
#define blockIdx (simt::current_block()->index)
#define blockDim (simt::current_block()->size)
#define gridDim (simt::current_block()->grid)
#define __syncthreads() simt::barrier(__LINE__)
#define __syncthreads_or(vote) simt::barrier(__LINE__, vote)
#define PRUNEKIT_DYNAMIC_SHARED(name) unsigned char* name = simt::current_block()->shared

template <typename T>
T __ldg(const T* from) {
  return *from;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline float __int_as_float(int bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
using std::max;
using std::min;
