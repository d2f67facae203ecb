// Launches the tensor-core kernel.
#include "condensed/conv2d.cuh"
#include "launch_kernel.cuh"

namespace prunekit {

std::string launch_condensed_conv2d(
    const CondensedConv& conv, const GridLaunch& launch, const int64_t* header, bool is_bfloat16, void* stream) {
  std::string problem;
  visit_condensed_kernel(is_bfloat16, InputWindow::of(conv), conv.warp_units, [&](auto kernel) {
    problem = launch_kernel(kernel, launch, conv, stream, is_bfloat16 ? "bfloat16 needs" : nullptr);
  });
  return problem;
}

}  // namespace prunekit
