// What every kernel does with a finished sum.
#pragma once

#include "device.cuh"
#include "epilogue.h"

namespace prunekit {

// Leaky ReLU where the convolution has it at `place`; a slope of 0 is ReLU, also of -inf.
template <typename Conv>
__device__ __forceinline__ float activate(const Conv& conv, ActivationPlace place, float value) {
  if (conv.activation != place || value >= 0.0f || value != value) {
    return value;
  }
  return conv.negative_slope == 0.0f ? 0.0f : value * conv.negative_slope;
}

}  // namespace prunekit
