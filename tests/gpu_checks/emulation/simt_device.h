// The wrappers of csrc/cuda/device.cuh on the emulator.
#pragma once

#include "simt.h"

namespace prunekit::device {

constexpr bool HAS_ASYNC_COPY = PRUNEKIT_EMULATED >= 800;

template <int BYTES>
void copy_async(void* to, const void* from, bool is_inside) {
  const simt::Copy copy{to, from, BYTES, is_inside};
  if (reinterpret_cast<uintptr_t>(to) % BYTES || (is_inside && reinterpret_cast<uintptr_t>(from) % BYTES)) {
    simt::stop("a misaligned copy");
  }
  if (HAS_ASYNC_COPY) {
    simt::Unwatched unwatched;
    simt::current()->open_group.push_back(copy);
  } else {
    copy.run();
  }
}

struct Column {
  float* to;
  const float* from;
  bool is_there;
};

template <int COUNT, int COLUMNS>
void copy_columns_async(Column (&columns)[COLUMNS], int to_stride, int64_t from_stride) {
  for (Column& column : columns) {
    for (int i = 0; i < COUNT; ++i, column.to += to_stride, column.from += from_stride) {
      if (column.is_there) {
        copy_async<4>(column.to, column.from, true);
      }
    }
  }
}

// Before architecture 8.0 nothing is there before `finish`.
template <int MOST>
struct StridedCopy {
  const int32_t* source = nullptr;

  void begin(int2* to, const int32_t* from, int stride, int end) {
    source = from;
    if (HAS_ASYNC_COPY) {
      copy(to, stride, end);
    }
  }

  void finish(int2* to, int stride, int end) {
    if (!HAS_ASYNC_COPY) {
      copy(to, stride, end);
    }
  }

 private:
  void copy(int2* to, int stride, int end) {
    for (int i = 0; i < MOST && i * stride < end; ++i) {
      copy_async<16>(to + i * stride, source + 2 * i * stride, true);
    }
  }
};

inline void commit_copies() {
  simt::Unwatched unwatched;
  simt::current()->groups.push_back(std::move(simt::current()->open_group));
  simt::current()->open_group.clear();
}

template <int NEWER>
void wait_for_copies() {
  auto& groups = simt::current()->groups;
  while (groups.size() > NEWER) {
    std::vector<simt::Copy> group;
    {
      simt::Unwatched unwatched;
      group = std::move(groups.front());
      groups.pop_front();
    }
    for (const simt::Copy& copy : group) {
      copy.run();
    }
  }
}

inline void store_global(float* to, float value) { *to = value; }

inline int opaque(int value) { return value; }

}  // namespace prunekit::device
