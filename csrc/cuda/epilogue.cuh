// What every kernel does with a finished sum.
#pragma once

#include "device.cuh"

namespace prunekit {

// Leaky ReLU; a slope of 0 is ReLU, also of -inf.
template <typename Conv>
__device__ __forceinline__ float activate(const Conv& conv, float value) {
  if (!conv.has_activation || value >= 0.0f || value != value) {
    return value;
  }
  return conv.negative_slope == 0.0f ? 0.0f : value * conv.negative_slope;
}

}  // namespace prunekit
