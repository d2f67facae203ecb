// Scratch memory that a thread keeps: fresh pages would cost more than many layers.
#pragma once

#include <cstdint>
#include <memory>

namespace prunekit {

constexpr size_t CACHE_LINE = 64;

// `slot` tells apart what a thread needs at the same time.
template <typename T>
T* scratch(int slot, int64_t elements) {
  struct Slot {
    std::unique_ptr<char[]> memory;
    size_t bytes = 0;
  };
  static thread_local Slot slots[2];
  Slot& s = slots[slot];
  const size_t bytes = elements * sizeof(T) + CACHE_LINE;
  if (s.bytes < bytes) {
    s.memory.reset();
    s.bytes = 0;
    s.memory.reset(new char[bytes]());
    s.bytes = bytes;
  }
  void* p = s.memory.get();
  size_t space = s.bytes;
  return static_cast<T*>(std::align(CACHE_LINE, elements * sizeof(T), p, space));
}

}  // namespace prunekit
