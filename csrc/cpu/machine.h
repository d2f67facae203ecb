// What this machine can do at most, and what it takes for cores to work together: figures beside measurements.
#pragma once

#include <chrono>
#include <cstdint>

namespace prunekit {

inline int64_t nanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// 10^9 float32 operations a second that torch's threads do in registers, the best of a few tries.
double fma_peak_gflops();

// Nanoseconds a cache line to write what another thread has read, the median of some tries. Cores that share a cache
// take a few; others, and virtual cores that were put far apart, several times as much.
double shared_write_ns();

// Nanoseconds a vector takes in `bytes` of memory that one thread passes over again and again, the best of some tries:
// to be multiplied and added, and to be read, changed and written back. They tell the caches' speeds.
struct VectorTimes {
  double multiply_add_ns, rewrite_ns;
};
VectorTimes vector_times(int64_t bytes);

}  // namespace prunekit
