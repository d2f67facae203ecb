// semi_structured_conv2d on CUDA tensors, through torch's stable ABI: compiled without CUDA's headers, and against any
// torch.
#include "condensed/tensors.h"
#include "semi_structured/launch.h"

namespace prunekit {
namespace {

constexpr ConvOp OP{
    "semi_structured_conv2d", "starts, columns, metadata and rows int32, all else of x's dtype, float16 or bfloat16"};

Tensor semi_structured_conv2d(
    const Tensor& x, const std::vector<int64_t>& header, const Tensor& starts, const Tensor& columns,
    const Tensor& fragments, const Tensor& metadata, const Tensor& rows, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& residual, const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
    const std::vector<int64_t>& dilation, const std::string& activation, double negative_slope,
    const std::vector<int64_t>& launch) {
  const bool is_bfloat16 = check_half(OP, x);
  const ConvShape shape = read_fragment_header(OP, x, header, SEMI_STRUCTURED_HEADER_WORDS, stride, padding, dilation);
  const int64_t shared = header[SEMI_STRUCTURED_FRAGMENTS];
  STD_TORCH_CHECK(shared == 1 || shared == 2 || shared == 4, "the filter's header is damaged");
  const StepLayout step = semi_structured_step(static_cast<int>(shared));
  check_fragments(OP, x, header, step, starts, columns, fragments, &metadata, rows);
  check_choices(activation, launch, 7);
  const ConvOutput output = ConvOutput::of(OP, x, shape, bias, residual);
  if (output.y.numel() == 0) {
    return output.y;
  }
  CondensedConv conv =
      fill_fragments(x, shape, output, starts, columns, fragments, rows, activation, negative_slope, launch);
  conv.metadata = metadata.const_data_ptr<int32_t>();
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const std::string problem =
      launch_semi_structured_conv2d(conv, is_bfloat16, header.data(), current_stream(x.get_device_index()));
  STD_TORCH_CHECK(problem.empty(), "semi_structured_conv2d did not run: ", problem);
  return output.y;
}

STABLE_TORCH_LIBRARY_IMPL(prunekit, CUDA, m) { m.impl("semi_structured_conv2d", TORCH_BOX(&semi_structured_conv2d)); }

}  // namespace
}  // namespace prunekit
