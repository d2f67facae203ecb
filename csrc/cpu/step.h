// A step of a plan: what it checks when it is made, and the tasks that threads share.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "../check.h"
#include "lane_kernels.h"
#include "plan.h"
#include "scratch.h"

namespace prunekit {

// What a task sees: the arena, and one image of every input and output.
struct Memory {
  float* arena;
  std::vector<const float*> inputs;
  std::vector<float*> outputs;
};

struct Step {
  virtual ~Step() = default;
  virtual int64_t num_tasks() const = 0;
  // What a task takes from a slot of scratch memory: a thread has it before it begins, because a task that ran out of
  // memory would be waited for.
  virtual int64_t scratch_elements(int slot, int64_t lanes) const { return 0; }
  virtual void run(const LaneKernels& kernels, const Memory& memory, int64_t task) const = 0;
};

// Of scratch memory.
constexpr int PLANAR_SLOT = 0, SUMS_SLOT = 1;

constexpr int64_t TASKS_PER_THREAD = 4;

inline void require(bool is_good, const char* what) { STD_TORCH_CHECK(is_good, "a plan's step is damaged: ", what); }

// Masks are read as vectors.
inline void require_aligned(const int32_t* mask) {
  require(reinterpret_cast<uintptr_t>(mask) % CACHE_LINE == 0, "a mask that is not aligned");
}

inline LaneEpilogue epilogue_of(const EpilogueWords& words) {
  require(words.activation >= 0 && words.activation < NUM_ACTIVATIONS, "unknown activation");
  return {static_cast<LaneActivation>(words.activation), static_cast<float>(words.parameter)};
}

// Elements [first, first + count) of the arena.
struct Bounds {
  int64_t arena_elements, lanes;
  void contain(int64_t first, int64_t last, const char* what) const {
    require(first >= 0 && last <= arena_elements && first <= last, what);
  }
  // `channels` planes of `vectors` vectors.
  void contain_planes(int64_t at, int64_t channel, int64_t channels, int64_t vectors, const char* what) const {
    require(channels > 0 && vectors > 0 && channel >= 0 && at % lanes == 0 && channel % lanes == 0, what);
    contain(at, at + (channels - 1) * channel + vectors * lanes, what);
  }
};

// An element of the arena, from its bits.
inline float element_of(int64_t bits) {
  const auto word = static_cast<uint32_t>(bits);
  float element;
  std::memcpy(&element, &word, sizeof element);
  return element;
}

// A step's struct, from its row of words.
template <typename T>
T read_words(const int64_t* words) {
  static_assert(sizeof(T) <= (STEP_WORDS - 1) * sizeof(int64_t), "a step has too many fields");
  T fields;
  std::memcpy(&fields, words + 1, sizeof fields);
  return fields;
}

// All throw when the step leaves the arena or does not fit its filter; the third makes all kinds but convolutions.
std::unique_ptr<Step> make_conv_step(
    const int64_t* words, const LaneKernels& kernels, const Bounds& bounds, int64_t threads);
std::unique_ptr<Step> make_quad_conv_step(const int64_t* words, const Bounds& bounds, int64_t threads);
std::unique_ptr<Step> make_channel_step(
    const int64_t* words, const Bounds& bounds, int64_t num_inputs, int64_t num_outputs, int64_t threads);
std::unique_ptr<Step> make_quad_channel_step(const int64_t* words, const Bounds& bounds, int64_t threads);

}  // namespace prunekit
