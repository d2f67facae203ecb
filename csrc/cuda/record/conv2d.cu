// Launches the float32 kernel.
#include "launch_kernel.cuh"
#include "record/conv2d.cuh"

namespace prunekit {

std::string launch_record_conv2d(RecordConv conv, const int64_t* header, void* stream) {
  const RecordLaunch launch = plan_record_launch(conv, header);
  if (!launch.refusal.empty()) {
    return launch.refusal;
  }
  const RecordWindow window =
      RecordWindow::of(conv, header[RECORD_KERNEL_H], header[RECORD_KERNEL_W], header[RECORD_WINDOW_TAPS]);
  std::string problem;
  visit_record_kernel(window, conv.tile_h, [&](auto kernel) { problem = launch_kernel(kernel, launch, conv, stream); });
  return problem;
}

}  // namespace prunekit
