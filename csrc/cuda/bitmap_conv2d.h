// The launcher of the bitmap kernels: what the binding, which is compiled without CUDA's headers, knows of them.
#pragma once

#include <cstdint>
#include <string>

#include "bitmap_launch.h"

namespace prunekit {

// Run on CUDA's current device and `stream` (a cudaStream_t); plan_bitmap_launch has filled `conv` and made `launch`.
// Returns why it could not be launched, or an empty text.
std::string launch_bitmap_conv2d(const BitmapConv& conv, const BitmapLaunch& launch, bool is_bfloat16, void* stream);

}  // namespace prunekit
