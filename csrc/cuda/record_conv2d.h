// The launcher of the float32 kernel: what the binding, which is compiled without CUDA's headers, knows of it.
#pragma once

#include <cstdint>
#include <string>

#include "record_launch.h"

namespace prunekit {

// Run on CUDA's current device and `stream` (a cudaStream_t); `conv` holds all but what plan_record_launch fills.
// Returns why it could not be launched, or an empty text.
std::string launch_record_conv2d(RecordConv conv, const int64_t* header, void* stream);

// The toolkit that compiled the kernels, as 1000 · major + 10 · minor.
int cuda_toolkit_version();

}  // namespace prunekit
