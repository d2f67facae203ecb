// Launches the float32 kernel.
#include "launch_kernel.cuh"
#include "record/conv2d.cuh"

namespace prunekit {

std::string launch_record_conv2d(
    const RecordConv& conv, const GridLaunch& launch, const int64_t* header, bool is_bfloat16, void* stream) {
  const RecordWindow window =
      RecordWindow::of(conv, header[RECORD_KERNEL_H], header[RECORD_KERNEL_W], header[RECORD_WINDOW_TAPS]);
  std::string problem;
  visit_record_kernel(window, conv.tile_h, [&](auto kernel) { problem = launch_kernel(kernel, launch, conv, stream); });
  return problem;
}

}  // namespace prunekit
