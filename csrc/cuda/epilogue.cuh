// What every kernel does with a finished sum.
#pragma once

#include "device.cuh"
#include "epilogue.h"

namespace prunekit {

// Leaky ReLU where the convolution has it at `place`, else the value; a slope of 0 is ReLU, also of -inf. No branches:
// slope and floor are the same for all pixels.
template <typename Conv>
__device__ __forceinline__ float activate(const Conv& conv, ActivationPlace place, float value) {
  const float slope = conv.activation == place ? conv.negative_slope : 1.0f;
  const float floor = slope == 0.0f ? 0.0f : -INFINITY;
  return value < 0.0f ? fmaxf(value * slope, floor) : value;
}

}  // namespace prunekit
