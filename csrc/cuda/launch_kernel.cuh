// Starts a kernel, or says why it did not start.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "words.h"

namespace prunekit {

// More than this much shared memory has to be asked for.
constexpr int64_t DEFAULT_SHARED_BYTES = 48 * 1024;

inline std::string describe(cudaError_t error) {
  return std::string("CUDA says ") + cudaGetErrorName(error) + ": " + cudaGetErrorString(error);
}

// Why a kernel that is empty before architecture 8.0 cannot run, or an empty text. Code for 7.5, translated by a driver
// for a newer GPU, is empty still.
template <typename Kernel>
std::string refuse_before_80(Kernel kernel, const char* what_needs) {
  cudaFuncAttributes attributes{};
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return describe(error);
  }
  return attributes.ptxVersion >= 80 ? "" : std::string(what_needs) + " a GPU and a build of architecture 8.0";
}

// `what_needs_80`: the beginning of a sentence about a kernel that is empty before 8.0; null for others.
template <typename Kernel, typename Conv>
std::string launch_kernel(
    Kernel kernel, const GridLaunch& launch, const Conv& conv, void* stream, const char* what_needs_80 = nullptr) {
  const std::string problem = what_needs_80 ? refuse_before_80(kernel, what_needs_80) : "";
  if (!problem.empty()) {
    return problem;
  }
  if (launch.shared_bytes > DEFAULT_SHARED_BYTES) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(launch.shared_bytes));
    if (error != cudaSuccess) {
      cudaGetLastError();  // it would come back at the next call
      return "a block of " + std::to_string(launch.shared_bytes) + " bytes of shared memory: " + describe(error);
    }
  }
  kernel<<<
      dim3(launch.grid_x, launch.grid_y), launch.threads, launch.shared_bytes, static_cast<cudaStream_t>(stream)>>>(
      conv);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? "" : describe(error);
}

}  // namespace prunekit
