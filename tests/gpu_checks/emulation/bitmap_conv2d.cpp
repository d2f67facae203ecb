// Runs the bitmap kernels on problems from a file: emulate INPUT OUTPUT SEED. tests/support/emulated_kernels.py writes
// and reads.
#include "bitmap/conv2d.cuh"

#include "conv_problem.h"

namespace {

// Launches the kernel, and behind it the one that adds the cuts where there are several.
void run(prunekit::BitmapConv conv, bool is_bfloat16, const int64_t* header, unsigned seed) {
  const prunekit::GridLaunch launch = prunekit::plan_bitmap_launch(conv, header);
  if (!launch.refusal.empty()) {
    simt::stop(launch.refusal.c_str());
  }
  // Of exactly this size, and of nan: what no block has written must not be read.
  const int64_t size = prunekit::workspace_size(conv);
  std::unique_ptr<float, decltype(&std::free)> workspace(
      static_cast<float*>(std::aligned_alloc(16, std::max<int64_t>(16, size * sizeof(float)))), &std::free);
  std::fill_n(workspace.get(), size, std::nanf(""));
  conv.workspace = workspace.get();
  prunekit::visit_bitmap_kernels(
      is_bfloat16, prunekit::InputWindow::of(conv), conv.warp_units, [&](auto kernel, auto add_cuts) {
        simt::launch(
            dim3(launch.grid_x, launch.grid_y), dim3(launch.threads), launch.shared_bytes, seed, [&] { kernel(conv); });
        if (conv.cuts > 1) {
          const prunekit::GridLaunch adding = prunekit::plan_cut_launch(conv);
          simt::launch(dim3(adding.grid_x, adding.grid_y), dim3(adding.threads), adding.shared_bytes, seed, [&] {
            add_cuts(conv);
          });
        }
      });
}

void run_problem(const int64_t* words, unsigned seed, std::FILE* output) {
  run_conv_problem<prunekit::BitmapConv>(words, seed, output, prunekit::bitmap_tensors, run);
}

}  // namespace

int main(int count, char** arguments) { return run_problems(count, arguments, run_problem); }
