#include "plan.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <new>
#include <thread>

#include "arena.h"
#include "instruction_sets.h"
#include "machine.h"
#include "step.h"

namespace prunekit {

namespace {

constexpr int SPINS_BEFORE_YIELD = 4096;

template <typename T>
constexpr StepDeclaration declared(int64_t kind, const char* name, const char* fields) {
  return {kind, name, fields, sizeof(T) / sizeof(int64_t)};
}

// Denormals are flushed to zero while a plan runs, and the thread's setting is put back afterwards.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : saved_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(saved_ | 0x8040); }
  ~FlushDenormals() { __builtin_ia32_ldmxcsr(saved_); }

 private:
  unsigned saved_;
#endif
};

// How far each step is, for all that take part. Each participant begins with a share of its own: the same part of every
// step, which is the same part of the image where steps cut it alike, so that much of what it reads it has written. That
// spares what two cores pay for lines that both hold.
class Schedule {
 public:
  Schedule(const std::vector<std::unique_ptr<Step>>& steps, int64_t participants)
      : steps_(steps),
        participants_(participants),
        shares_(new Line[steps.size() * participants]),
        done_(new Line[steps.size()]) {}

  // Take tasks of each step, first of the participant's own share, then of the others', until none is left, then wait
  // for those that others still work on. A participant never waits for one that has not begun, so any number of them,
  // one after the other or at once, finishes the steps.
  void participate(
      const LaneKernels& kernels, const Memory& memory, int64_t participant, int64_t begin_ns,
      int64_t* step_ends) const {
    for (size_t i = 0; i < steps_.size(); ++i) {
      const int64_t tasks = steps_[i]->num_tasks(), mine = run_tasks(i, tasks, kernels, memory, participant);
      std::atomic<int64_t>& done = done_[i].count;
      if (mine > 0 && done.fetch_add(mine, std::memory_order_acq_rel) + mine == tasks && step_ends) {
        step_ends[i] = nanoseconds() - begin_ns;
      }
      for (int spins = 0; done.load(std::memory_order_acquire) < tasks; ++spins) {
        if (spins >= SPINS_BEFORE_YIELD) {
          std::this_thread::yield();
        }
      }
    }
  }

 private:
  struct alignas(CACHE_LINE) Line {
    std::atomic<int64_t> count{0};
  };

  int64_t run_tasks(
      size_t step, int64_t tasks, const LaneKernels& kernels, const Memory& memory, int64_t participant) const {
    int64_t count = 0;
    for (int64_t i = 0; i < participants_; ++i) {
      const int64_t share = (participant + i) % participants_;
      const int64_t begin = tasks * share / participants_, end = tasks * (share + 1) / participants_;
      std::atomic<int64_t>& taken = shares_[step * participants_ + share].count;
      for (int64_t task; (task = begin + taken.fetch_add(1, std::memory_order_relaxed)) < end; ++count) {
        steps_[step]->run(kernels, memory, task);
      }
    }
    return count;
  }

  const std::vector<std::unique_ptr<Step>>& steps_;
  const int64_t participants_;
  const std::unique_ptr<Line[]> shares_, done_;
};

}  // namespace

#define PRUNEKIT_NAME(name) #name ", "
std::vector<StepDeclaration> step_declarations() {
  return {
      declared<ConvStep>(CONV, "conv", ConvStepFields),
      declared<HaloStep>(HALO, "halo", HaloStepFields),
      declared<RemapStep>(REMAP, "remap", RemapStepFields),
      declared<ElementwiseStep>(ELEMENTWISE, "elementwise", ElementwiseStepFields),
      declared<PoolStep>(POOL, "pool", PoolStepFields),
      declared<MeanStep>(MEAN, "mean", MeanStepFields),
      declared<ShiftStep>(SHIFT, "shift", ShiftStepFields),
      declared<QuadConvStep>(QUAD_CONV, "quad_conv", QuadConvStepFields),
      declared<QuantizeStep>(QUANTIZE, "quantize", QuantizeStepFields),
      declared<QuantizeStep>(DEQUANTIZE, "dequantize", QuantizeStepFields),
      declared<QuadPoolStep>(QUAD_POOL, "quad_pool", QuadPoolStepFields),
      declared<EpilogueWords>(-1, "EpilogueWords", EpilogueWordsFields),
      {-1, "LaneActivation", PRUNEKIT_ACTIVATIONS(PRUNEKIT_NAME), 1},
      {-1, "LaneReading", LaneReadingNames, 1},
      {-1, "LaneWeights", LaneWeightsNames, 1},
  };
}

Plan::Plan(const int64_t* words, int64_t num_words, int64_t arena_elements, int64_t num_inputs, int64_t num_outputs)
    : kernels_(lane_kernels()), arena_elements_(arena_elements), num_inputs_(num_inputs), num_outputs_(num_outputs) {
  require(num_words % STEP_WORDS == 0 && arena_elements >= 0, "its size");
  const Bounds bounds{arena_elements, kernels_.lanes};
  const int64_t threads = torch::stable::get_num_threads();
  for (const int64_t* step = words; step < words + num_words; step += STEP_WORDS) {
    steps_.push_back(
        *step == CONV            ? make_conv_step(step, kernels_, bounds, threads)
            : *step == QUAD_CONV ? make_quad_conv_step(step, bounds, threads)
                                 : make_channel_step(step, bounds, num_inputs, num_outputs, threads));
    for (const int slot : {PLANAR_SLOT, SUMS_SLOT}) {
      scratch_elements_[slot] =
          std::max(scratch_elements_[slot], steps_.back()->scratch_elements(slot, kernels_.lanes));
    }
  }
}

Plan::~Plan() = default;

std::unique_ptr<Arena> Plan::take_arena() const {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!free_arenas_.empty()) {
      std::unique_ptr<Arena> arena = std::move(free_arenas_.back());
      free_arenas_.pop_back();
      return arena;
    }
  }
  return std::make_unique<Arena>(arena_elements_);
}

void Plan::run_image(const Memory& memory, int64_t* step_ends) const {
  const int64_t threads = torch::stable::get_num_threads();
  const Schedule schedule(steps_, threads);
  const int64_t begin = nanoseconds();
  std::atomic<bool> has_memory{true};  // what a thread throws would lose its type on the way
  torch::stable::parallel_for(0, threads, 1, [&](int64_t participant, int64_t) {
    const FlushDenormals flush;
    try {
      for (const int slot : {PLANAR_SLOT, SUMS_SLOT}) {
        scratch<float>(slot, scratch_elements_[slot]);
      }
    } catch (const std::bad_alloc&) {
      has_memory = false;
      return;
    }
    schedule.participate(kernels_, memory, participant, begin, step_ends);
  });
  if (!has_memory) {
    throw std::bad_alloc();
  }
}

void Plan::run(
    const std::vector<Image>& inputs, const std::vector<Result>& outputs, int64_t batch, int64_t* step_ends,
    float* callers_arena) const {
  require(reinterpret_cast<uintptr_t>(callers_arena) % CACHE_LINE == 0, "an arena that is not aligned");
  std::unique_ptr<Arena> arena = callers_arena ? nullptr : take_arena();
  for (int64_t n = 0; n < batch; ++n) {
    Memory memory{callers_arena ? callers_arena : arena->data, {}, {}};
    for (const Image& input : inputs) {
      memory.inputs.push_back(input.data + n * input.batch_stride);
    }
    for (const Result& output : outputs) {
      memory.outputs.push_back(output.data + n * output.batch_stride);
    }
    run_image(memory, step_ends);
  }
  if (arena) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_arenas_.push_back(std::move(arena));
  }
}

}  // namespace prunekit
