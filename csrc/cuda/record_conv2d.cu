// Launches the float32 kernel.
#include "record_conv2d.h"

#include "record_conv2d.cuh"

namespace prunekit {
namespace {

// More than this much shared memory has to be asked for.
constexpr int64_t DEFAULT_SHARED_BYTES = 48 * 1024;

std::string describe(cudaError_t error) {
  return std::string("CUDA says ") + cudaGetErrorName(error) + ": " + cudaGetErrorString(error);
}

template <typename Kernel>
std::string launch_kernel(Kernel kernel, const RecordLaunch& launch, const RecordConv& conv, cudaStream_t stream) {
  if (launch.shared_bytes > DEFAULT_SHARED_BYTES) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(launch.shared_bytes));
    if (error != cudaSuccess) {
      cudaGetLastError();  // it would come back at the next call
      return "a block of " + std::to_string(launch.shared_bytes) + " bytes of shared memory: " + describe(error);
    }
  }
  kernel<<<dim3(launch.grid_x, launch.grid_y), launch.threads, launch.shared_bytes, stream>>>(conv);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? "" : describe(error);
}

}  // namespace

std::string launch_record_conv2d(RecordConv conv, const int64_t* header, void* stream) {
  const RecordLaunch launch = plan_record_launch(conv, header);
  if (!launch.refusal.empty()) {
    return launch.refusal;
  }
  const RecordWindow window =
      RecordWindow::of(conv, header[RECORD_KERNEL_H], header[RECORD_KERNEL_W], header[RECORD_WINDOW_TAPS]);
  std::string problem;
  visit_record_kernel(window, conv.tile_h, [&](auto kernel) {
    problem = launch_kernel(kernel, launch, conv, static_cast<cudaStream_t>(stream));
  });
  return problem;
}

int cuda_toolkit_version() { return CUDART_VERSION; }

}  // namespace prunekit
