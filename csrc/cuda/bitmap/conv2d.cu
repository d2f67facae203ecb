// Launches the bitmap kernel, and the kernel that adds its cuts.
#include "bitmap/conv2d.cuh"
#include "launch_kernel.cuh"

namespace prunekit {

std::string launch_bitmap_conv2d(
    const BitmapConv& conv, const GridLaunch& launch, const int64_t* header, bool is_bfloat16, void* stream) {
  std::string problem;
  visit_bitmap_kernels(is_bfloat16, InputWindow::of(conv), conv.warp_units, [&](auto kernel, auto add_cuts) {
    problem = launch_kernel(kernel, launch, conv, stream, is_bfloat16 ? "bfloat16 needs" : nullptr);
    if (problem.empty() && conv.cuts > 1) {
      problem = launch_kernel(add_cuts, plan_cut_launch(conv), conv, stream);
    }
  });
  return problem;
}

}  // namespace prunekit
