// condensed_conv2d on CUDA tensors, through torch's stable ABI: compiled without CUDA's headers, and against any torch.
#include "condensed/launch.h"
#include "condensed/tensors.h"

namespace prunekit {
namespace {

constexpr ConvOp OP{"condensed_conv2d", "starts, columns and rows int32, all else of x's dtype, float16 or bfloat16"};

Tensor condensed_conv2d(
    const Tensor& x, const std::vector<int64_t>& header, const Tensor& starts, const Tensor& columns,
    const Tensor& fragments, const Tensor& rows, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& residual, const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
    const std::vector<int64_t>& dilation, const std::string& activation, double negative_slope,
    const std::vector<int64_t>& launch) {
  const bool is_bfloat16 = check_half(OP, x);
  const ConvShape shape = read_fragment_header(OP, x, header, FRAGMENT_HEADER_WORDS, stride, padding, dilation);
  check_fragments(OP, x, header, CONDENSED_STEP, starts, columns, fragments, nullptr, rows);
  check_choices(activation, launch, 7);
  const ConvOutput output = ConvOutput::of(OP, x, shape, bias, residual);
  if (output.y.numel() == 0) {
    return output.y;
  }
  const CondensedConv conv =
      fill_fragments(x, shape, output, starts, columns, fragments, rows, activation, negative_slope, launch);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const std::string problem =
      launch_condensed_conv2d(conv, is_bfloat16, header.data(), current_stream(x.get_device_index()));
  STD_TORCH_CHECK(problem.empty(), "condensed_conv2d did not run: ", problem);
  return output.y;
}

STABLE_TORCH_LIBRARY_IMPL(prunekit, CUDA, m) { m.impl("condensed_conv2d", TORCH_BOX(&condensed_conv2d)); }

}  // namespace
}  // namespace prunekit
