// Runs the float32 kernel on problems from a file: emulate INPUT OUTPUT SEED. tests/support/emulated_kernels.py writes
// and reads.
#include "record/conv2d.cuh"

#include "conv_problem.h"

namespace {

void run(prunekit::RecordConv conv, bool is_bfloat16, const int64_t* header, unsigned seed) {
  const prunekit::GridLaunch launch = prunekit::plan_record_launch(conv, header);
  if (!launch.refusal.empty()) {
    simt::stop(launch.refusal.c_str());
  }
  const auto window = prunekit::RecordWindow::of(
      conv, header[prunekit::RECORD_KERNEL_H], header[prunekit::RECORD_KERNEL_W], header[prunekit::RECORD_WINDOW_TAPS]);
  prunekit::visit_record_kernel(window, conv.tile_h, [&](auto kernel) {
    simt::launch(
        dim3(launch.grid_x, launch.grid_y), dim3(launch.threads), launch.shared_bytes, seed, [&] { kernel(conv); });
  });
}

void run_problem(const int64_t* words, unsigned seed, std::FILE* output) {
  run_conv_problem<prunekit::RecordConv>(words, seed, output, prunekit::record_tensors, run);
}

}  // namespace

int main(int count, char** arguments) { return run_problems(count, arguments, run_problem); }
