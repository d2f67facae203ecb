// The memory that all values of a plan lie in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../sparse_filter.h"

namespace prunekit {

// Zeroed memory in huge pages where the system has them: a tile touches a page per channel.
struct Arena {
  explicit Arena(int64_t elements) {
    constexpr size_t HUGE_PAGE = size_t{1} << 21;
    if (elements > INT64_MAX / 8) {
      throw std::bad_alloc();
    }
    const size_t bytes = ceil_div(std::max<int64_t>(elements, 1) * sizeof(float), HUGE_PAGE) * HUGE_PAGE;
    data = static_cast<float*>(std::aligned_alloc(HUGE_PAGE, bytes));
    if (!data) {
      throw std::bad_alloc();
    }
#if defined(__linux__)
    madvise(data, bytes, MADV_HUGEPAGE);
#endif
    std::memset(static_cast<void*>(data), 0, bytes);
  }
  ~Arena() { std::free(data); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  float* data;
};

}  // namespace prunekit
