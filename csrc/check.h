// Argument checks shared by the ops: each prints what was expected and what was found.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <exception>
#include <string>

namespace prunekit {

using torch::stable::Tensor;
using torch::headeronly::ScalarType;

inline std::string shape_of(const Tensor& t) {
  std::string text = "[";
  for (int64_t d = 0; d < t.dim(); ++d) {
    text += (d ? ", " : "") + std::to_string(t.size(d));
  }
  return text + "]";
}

inline void check_cpu(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.is_cpu(), "prunekit expects ", name, " on the CPU");
}

// What `make` returns. Torch's own sentence about a lack of memory does not come through the stable ABI.
template <typename F>
Tensor allocated(const Tensor& like, const F& make) {
  try {
    return make();
  } catch (const std::exception&) {
    STD_TORCH_CHECK(false, "prunekit: there is no memory for a convolution of x ", shape_of(like));
  }
}

inline void check_bias(const Tensor& bias, int64_t out_channels, ScalarType dtype) {
  check_cpu(bias, "bias");
  STD_TORCH_CHECK(
      bias.dim() == 1 && bias.size(0) == out_channels && bias.scalar_type() == dtype, "prunekit expects a bias [",
      out_channels, "] of x's dtype, got shape ", shape_of(bias));
}

// Whether the strides of t [N, C, H, W] order its memory as N, H, W, C: torch's rule, see ops/memory_format.py.
inline bool is_channels_last(const Tensor& t) {
  if (t.dim() != 4 || t.stride(1) == 0) {
    return false;
  }
  int64_t smallest = 0;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (t.size(d) == 0 || t.stride(d) < smallest || (d == 0 && smallest == t.stride(1))) {
      return false;
    }
    smallest = t.stride(d) * t.size(d);
  }
  return true;
}

inline Tensor as_channels_last(const Tensor& y) {
  return torch::stable::contiguous(y, torch::headeronly::MemoryFormat::ChannelsLast);
}

}  // namespace prunekit
