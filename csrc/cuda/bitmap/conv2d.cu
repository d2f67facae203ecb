// Launches the bitmap kernel, and the kernel that adds its cuts.
#include "bitmap/conv2d.cuh"
#include "launch_kernel.cuh"

namespace prunekit {

std::string launch_bitmap_conv2d(const BitmapConv& conv, const BitmapLaunch& launch, bool is_bfloat16, void* stream) {
  if (!launch.refusal.empty()) {
    return launch.refusal;
  }
  std::string problem;
  visit_bitmap_kernels(is_bfloat16, InputWindow::of(conv), conv.warp_units, [&](auto kernel, auto add_cuts) {
    problem = is_bfloat16 ? refuse_before_80(kernel, "bfloat16 needs") : "";
    problem = problem.empty() ? launch_kernel(kernel, launch, conv, stream) : problem;
    if (problem.empty() && conv.cuts > 1) {
      problem = launch_kernel(add_cuts, plan_cut_launch(conv), conv, stream);
    }
  });
  return problem;
}

}  // namespace prunekit
