// The words that ops are told by, with the names that Python has for them.
//
// The names go to Python, whose loader compares them with its own (`signature` of prunekit/ops/cuda/registry.py): words of one type
// cannot change places on one side alone.
#pragma once

#include <cstdint>
#include <string>

namespace prunekit {

// What every filter's header begins with; a format lists its own words behind. WORD makes of each an enumerator or a
// name.
#define PRUNEKIT_FILTER_WORDS(WORD) \
  WORD(OUT_CHANNELS) WORD(GROUP_CHANNELS) WORD(KERNEL_H) WORD(KERNEL_W) WORD(GROUPS) WORD(CHUNK_CHANNELS)
#define PRUNEKIT_WORD_NAME(word) #word,

// A tensor of a filter, in the op's order: how many elements the header asks for, and where the kernel looks for them,
// int32 or 16 bits of x's dtype.
struct FilterTensor {
  const char* name;
  int64_t elements;
  const int32_t** words;
  const uint16_t** halves = nullptr;
};

// A number of a launch, in the op's order, and the kernel's argument that it is.
struct LaunchWord {
  const char* name;
  int* value;
};

// The blocks that a kernel is started with.
struct GridLaunch {
  unsigned grid_x, grid_y, threads;
  int64_t shared_bytes;
  std::string refusal;  // why the kernel cannot run like this, or empty
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace prunekit
