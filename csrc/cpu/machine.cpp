#include "machine.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#include "arena.h"
#include "instruction_sets.h"
#include "scratch.h"

namespace prunekit {

double fma_peak_gflops() {
  constexpr int TRIES = 5;
  constexpr int64_t ITERATIONS = 2'000'000;
  const LaneKernels& kernels = lane_kernels();
  const int64_t threads = torch::stable::get_num_threads();
  double best = 0;
  for (int i = 0; i < TRIES; ++i) {
    std::atomic<int64_t> operations{0};
    const int64_t begin = nanoseconds();
    torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
      for (int64_t t = first; t < last; ++t) {
        operations += kernels.multiply_add(ITERATIONS);
      }
    });
    best = std::max(best, static_cast<double>(operations) / (nanoseconds() - begin));
  }
  return best;
}

double shared_write_ns() {
  constexpr int TRIES = 21;
  constexpr int64_t LINES = 4096;  // 256 KiB, which a core's own cache holds
  struct alignas(CACHE_LINE) Line {
    std::atomic<int64_t> word{0};
  };
  const std::unique_ptr<Line[]> lines(new Line[LINES]);
  std::atomic<int> turn{0};  // odd: the reader's
  std::thread reader([&] {
    for (int i = 0; i < TRIES; ++i) {
      while (turn.load(std::memory_order_acquire) != 2 * i + 1) {  // a yield would let both stay on one core
      }
      for (int64_t line = 0; line < LINES; ++line) {
        lines[line].word.load(std::memory_order_relaxed);
      }
      turn.store(2 * i + 2, std::memory_order_release);
    }
  });
  const auto write = [&](int64_t value) {
    for (int64_t line = 0; line < LINES; ++line) {
      lines[line].word.store(value, std::memory_order_relaxed);
    }
  };
  std::vector<double> costs;
  write(-1);
  for (int i = 0; i < TRIES; ++i) {
    turn.store(2 * i + 1, std::memory_order_release);
    while (turn.load(std::memory_order_acquire) != 2 * i + 2) {
    }
    const int64_t begin = nanoseconds();
    write(i);
    costs.push_back(static_cast<double>(nanoseconds() - begin) / LINES);
  }
  reader.join();
  std::nth_element(costs.begin(), costs.begin() + TRIES / 2, costs.end());
  return costs[TRIES / 2];
}

VectorTimes vector_times(int64_t bytes) {
  constexpr int TRIES = 5;
  constexpr int64_t BYTES_A_TRY = int64_t{32} << 20;
  const LaneKernels& kernels = lane_kernels();
  const int64_t vectors = bytes / int64_t{sizeof(float)} / kernels.lanes;
  STD_TORCH_CHECK(vectors >= 12, "expected at least 12 vectors of memory to time, found ", bytes, " bytes");
  const Arena memory(vectors * kernels.lanes);
  const int64_t passes = ceil_div(BYTES_A_TRY, bytes);
  const LaneElementwise rewrite = {
      memory.data, nullptr, memory.data, vectors, false, 0.5f, 1.0f, {LaneActivation::NONE, 0.0f}, nullptr};
  const auto time = [&](auto pass) {
    double best = std::numeric_limits<double>::infinity();
    for (int i = 0; i < TRIES; ++i) {
      const int64_t begin = nanoseconds();
      for (int64_t p = 0; p < passes; ++p) {
        pass();
      }
      best = std::min(best, static_cast<double>(nanoseconds() - begin) / static_cast<double>(passes * vectors));
    }
    return best;
  };
  return {time([&] { kernels.multiply_add_from(memory.data, vectors); }), time([&] { kernels.elementwise(rewrite); })};
}

}  // namespace prunekit
