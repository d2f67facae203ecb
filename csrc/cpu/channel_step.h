// Steps that treat each channel by itself: what threads share of them.
#pragma once

#include <algorithm>

#include "../sparse_filter.h"
#include "step.h"

namespace prunekit {

// About what a task of a memory-bound step should move at least; smaller ones cost more to hand out than to do.
constexpr int64_t MIN_TASK_ELEMENTS = 16 * 1024;

// A task is a range of channels.
class ChannelStep : public Step {
 public:
  ChannelStep(int64_t channels, int64_t elements_a_channel, int64_t threads)
      : channels_(channels),
        channels_a_task_(
            std::max<int64_t>(
                {1, MIN_TASK_ELEMENTS / std::max<int64_t>(1, elements_a_channel),
                 channels / (TASKS_PER_THREAD * threads)})) {}
  int64_t num_tasks() const override { return ceil_div(channels_, channels_a_task_); }
  void run(const LaneKernels& kernels, const Memory& memory, int64_t task) const override {
    const int64_t end = std::min(channels_, (task + 1) * channels_a_task_);
    for (int64_t c = task * channels_a_task_; c < end; ++c) {
      run_channel(kernels, memory, c);
    }
  }

 protected:
  virtual void run_channel(const LaneKernels& kernels, const Memory& memory, int64_t channel) const = 0;

 private:
  const int64_t channels_, channels_a_task_;
};

}  // namespace prunekit
