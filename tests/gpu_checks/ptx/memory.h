// Memory as a kernel sees it, which stops at every access that a GPU would not define: past the end, misaligned,
// unordered by barriers, or under an asynchronous copy.
#pragma once

#include <unordered_set>

#include "arithmetic.h"

namespace ptx {

// The tensors; one of them is written, each element once.
class GlobalMemory {
 public:
  void add(const void* begin, int64_t bytes, bool is_written) {
    const auto first = reinterpret_cast<uint64_t>(begin);
    tensors_.push_back({first, first + bytes, is_written});
  }

  const uint8_t* read(uint64_t address, int bytes, bool is_read_only) const {
    const Tensor& tensor = find(address, bytes);
    if (is_read_only && tensor.is_written) {
      throw Error("a read-only load of what the kernel writes");
    }
    return reinterpret_cast<const uint8_t*>(address);
  }

  uint8_t* write(uint64_t address, int bytes) {
    if (!find(address, bytes).is_written) {
      throw Error("a store to an input");
    }
    if (!stored_.insert(address).second) {
      throw Error("an element is stored twice");
    }
    return reinterpret_cast<uint8_t*>(address);
  }

 private:
  struct Tensor {
    uint64_t begin, end;
    bool is_written;
  };
  std::vector<Tensor> tensors_;
  std::unordered_set<uint64_t> stored_;

  const Tensor& find(uint64_t address, int bytes) const {
    for (const Tensor& tensor : tensors_) {
      if (address >= tensor.begin && address + bytes <= tensor.end) {
        if (address % bytes) {
          throw Error("misaligned global memory");
        }
        return tensor;
      }
    }
    throw Error("global memory out of bounds");
  }
};

// A block's. Two threads may use a word in one interval between barriers only if both read it.
class SharedMemory {
 public:
  // Filled with nan, as nothing says what it holds at first.
  explicit SharedMemory(int64_t bytes) : bytes_(bytes, 0xff), halves_((bytes + 1) / 2) {}

  void pass_barrier() { ++interval_; }

  const uint8_t* read(uint64_t address, int bytes, int thread) {
    const size_t first = place_of(address, bytes);
    for (size_t at = first / 2; at < (first + bytes + 1) / 2; ++at) {
      Half& half = halves_[at];
      if (half.copies) {
        throw Error("a read of shared memory that a copy is under way to");
      }
      if (half.written == interval_ && half.writer != thread) {
        throw Error("a race: thread " + std::to_string(half.writer) + " wrote this since the last barrier");
      }
      half.reader = half.read == interval_ && half.reader != thread ? MANY : thread;
      half.read = interval_;
    }
    return &bytes_[first];
  }

  uint8_t* write(uint64_t address, int bytes, int thread) {
    const size_t first = place_of(address, bytes);
    for (size_t at = first / 2; at < (first + bytes + 1) / 2; ++at) {
      if (halves_[at].copies) {
        throw Error("a write to shared memory that a copy is under way to");
      }
      note_write(halves_[at], thread);
    }
    return &bytes_[first];
  }

  // A copy that begins, and one that arrives: `change` is 1 and -1.
  uint8_t* copy(uint64_t address, int bytes, int thread, int change) {
    const size_t first = place_of(address, bytes);
    for (size_t at = first / 2; at < (first + bytes + 1) / 2; ++at) {
      if (change > 0 && halves_[at].copies) {
        throw Error("two copies to the same place");
      }
      halves_[at].copies += change;
      note_write(halves_[at], thread);
    }
    return &bytes_[first];
  }

 private:
  static constexpr int MANY = -2;
  struct Half {
    int written = -1, writer = 0, read = -1, reader = 0, copies = 0;
  };
  std::vector<uint8_t> bytes_;
  std::vector<Half> halves_;
  int interval_ = 0;

  size_t place_of(uint64_t address, int bytes) const {
    if (address < SHARED_BASE || address - SHARED_BASE + bytes > bytes_.size()) {
      throw Error("shared memory out of bounds");
    }
    if (address % bytes) {
      throw Error("misaligned shared memory");
    }
    return address - SHARED_BASE;
  }

  void note_write(Half& half, int thread) {
    if ((half.read == interval_ && half.reader != thread) || (half.written == interval_ && half.writer != thread)) {
      throw Error("a race: another thread used this place since the last barrier");
    }
    half.written = interval_, half.writer = thread;
  }
};

}  // namespace ptx
