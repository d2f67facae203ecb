// Launches the kernel on sparse tensor cores.
#include "semi_structured/conv2d.cuh"

#include "launch_kernel.cuh"

namespace prunekit {

std::string launch_semi_structured_conv2d(CondensedConv conv, bool is_bfloat16, const int64_t* header, void* stream) {
  const CondensedLaunch launch = plan_semi_structured_launch(conv, header);
  if (!launch.refusal.empty()) {
    return launch.refusal;
  }
  std::string problem;
  visit_semi_structured_kernel(is_bfloat16, InputWindow::of(conv), header[SEMI_STRUCTURED_FRAGMENTS], [&](auto kernel) {
    problem = refuse_before_80(kernel, "sparse tensor cores need");
    problem = problem.empty() ? launch_kernel(kernel, launch, conv, stream) : problem;
  });
  return problem;
}

}  // namespace prunekit
