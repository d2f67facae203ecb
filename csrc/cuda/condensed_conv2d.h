// The launcher of the tensor-core kernel: what the binding, which is compiled without CUDA's headers, knows of it.
#pragma once

#include <cstdint>
#include <string>

#include "condensed_launch.h"

namespace prunekit {

// Run on CUDA's current device and `stream` (a cudaStream_t); `conv` holds all but what plan_condensed_launch fills.
// Returns why it could not be launched, or an empty text.
std::string launch_condensed_conv2d(CondensedConv conv, bool is_bfloat16, const int64_t* header, void* stream);

}  // namespace prunekit
