// Launches the kernel on sparse tensor cores.
#include "semi_structured/conv2d.cuh"

#include "launch_kernel.cuh"

namespace prunekit {

std::string launch_semi_structured_conv2d(
    const CondensedConv& conv, const GridLaunch& launch, const int64_t* header, bool is_bfloat16, void* stream) {
  std::string problem;
  visit_semi_structured_kernel(is_bfloat16, InputWindow::of(conv), header[SEMI_STRUCTURED_FRAGMENTS], [&](auto kernel) {
    problem = launch_kernel(kernel, launch, conv, stream, "sparse tensor cores need");
  });
  return problem;
}

}  // namespace prunekit
