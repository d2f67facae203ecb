// Launches the tensor-core kernel.
#include "condensed/conv2d.cuh"
#include "launch_kernel.cuh"

namespace prunekit {

std::string launch_condensed_conv2d(CondensedConv conv, bool is_bfloat16, const int64_t* header, void* stream) {
  const CondensedLaunch launch = plan_condensed_launch(conv, header);
  if (!launch.refusal.empty()) {
    return launch.refusal;
  }
  std::string problem;
  visit_condensed_kernel(is_bfloat16, InputWindow::of(conv), conv.warp_units, [&](auto kernel) {
    problem = is_bfloat16 ? refuse_before_80(kernel, "bfloat16 needs") : "";
    problem = problem.empty() ? launch_kernel(kernel, launch, conv, stream) : problem;
  });
  return problem;
}

}  // namespace prunekit
