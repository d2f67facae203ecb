// Runs the tensor-core kernel on problems from a file: emulate INPUT OUTPUT SEED. tests/support/emulated_kernels.py
// writes and reads.
#include "condensed/conv2d.cuh"

#include "conv_problem.h"

namespace {

void run(prunekit::CondensedConv conv, bool is_bfloat16, const int64_t* header, unsigned seed) {
  const prunekit::GridLaunch launch = prunekit::plan_condensed_launch(conv, header);
  if (!launch.refusal.empty()) {
    simt::stop(launch.refusal.c_str());
  }
  prunekit::visit_condensed_kernel(is_bfloat16, prunekit::InputWindow::of(conv), conv.warp_units, [&](auto kernel) {
    simt::launch(
        dim3(launch.grid_x, launch.grid_y), dim3(launch.threads), launch.shared_bytes, seed, [&] { kernel(conv); });
  });
}

void run_problem(const int64_t* words, unsigned seed, std::FILE* output) {
  run_conv_problem<prunekit::CondensedConv>(words, seed, output, prunekit::condensed_tensors, run);
}

}  // namespace

int main(int count, char** arguments) { return run_problems(count, arguments, run_problem); }
