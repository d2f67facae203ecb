// condensed_conv2d on CUDA tensors, through torch's stable ABI: compiled without CUDA's headers, and against any torch.
#include "condensed_conv2d.h"
#include "conv_tensors.h"

namespace prunekit {
namespace {

constexpr ConvOp OP{"condensed_conv2d", "starts, columns and rows int32, all else of x's dtype, float16 or bfloat16"};

ConvShape read_header(
    const Tensor& x, const std::vector<int64_t>& header, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
  STD_TORCH_CHECK(header.size() == FRAGMENT_HEADER_WORDS, "the fragment filter's header has a wrong length");
  for (const int word : {FRAGMENT_OUT_CHANNELS, FRAGMENT_GROUP_CHANNELS, FRAGMENT_KERNEL_H, FRAGMENT_KERNEL_W,
                         FRAGMENT_GROUPS, FRAGMENT_CHUNK_CHANNELS}) {
    STD_TORCH_CHECK(header[word] > 0 && header[word] < (1 << 29), "the fragment filter's header is damaged");
  }
  for (const int word : {FRAGMENT_STEPS, FRAGMENT_LONGEST}) {
    STD_TORCH_CHECK(header[word] >= 0 && header[word] < (1 << 29), "the fragment filter's header is damaged");
  }
  return OP.read_shape(
      x, header[FRAGMENT_OUT_CHANNELS], header[FRAGMENT_GROUP_CHANNELS], header[FRAGMENT_KERNEL_H],
      header[FRAGMENT_KERNEL_W], header[FRAGMENT_GROUPS], stride, padding, dilation);
}

void check_filter(
    const Tensor& x, const std::vector<int64_t>& header, const Tensor& starts, const Tensor& columns,
    const Tensor& fragments, const Tensor& rows) {
  OP.check_on_device(x, starts, "starts", ScalarType::Int);
  OP.check_on_device(x, columns, "columns", ScalarType::Int);
  OP.check_on_device(x, fragments, "fragments", x.scalar_type());
  OP.check_on_device(x, rows, "rows", ScalarType::Int);
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t row_groups =
      header[FRAGMENT_GROUPS] * ceil_div(header[FRAGMENT_OUT_CHANNELS] / header[FRAGMENT_GROUPS], FRAGMENT_ROWS);
  const int64_t runs = row_groups * ceil_div(header[FRAGMENT_GROUP_CHANNELS], header[FRAGMENT_CHUNK_CHANNELS]);
  STD_TORCH_CHECK(
      starts.is_contiguous() && columns.is_contiguous() && fragments.is_contiguous() && rows.is_contiguous() &&
          rows.numel() == row_groups * FRAGMENT_ROWS && starts.numel() == runs + 1 &&
          columns.numel() == header[FRAGMENT_STEPS] * STEP_COLUMNS &&
          fragments.numel() == header[FRAGMENT_STEPS] * STEP_COLUMNS * FRAGMENT_ROWS,
      "the fragment filter is damaged: its header does not fit its ", starts.numel(), " starts and ",
      columns.numel() / STEP_COLUMNS, " steps");
}

const uint16_t* bits_of(const Tensor& t) { return static_cast<const uint16_t*>(t.const_data_ptr()); }

Tensor condensed_conv2d(
    const Tensor& x, const std::vector<int64_t>& header, const Tensor& starts, const Tensor& columns,
    const Tensor& fragments, const Tensor& rows, const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
    const std::string& activation, double negative_slope, const std::vector<int64_t>& launch) {
  const bool is_bfloat16 = x.scalar_type() == ScalarType::BFloat16;
  OP.check_on_device(x, x, "x", is_bfloat16 ? ScalarType::BFloat16 : ScalarType::Half);
  const ConvShape shape = read_header(x, header, stride, padding, dilation);
  check_filter(x, header, starts, columns, fragments, rows);
  check_choices(activation, launch, 7);
  const ConvOutput output = ConvOutput::of(OP, x, shape, bias, residual);
  if (output.y.numel() == 0) {
    return output.y;
  }
  CondensedConv conv{};
  fill_conv(
      conv, bits_of(x), static_cast<uint16_t*>(output.y.mutable_data_ptr()), x, output.y, shape, activation,
      negative_slope);
  conv.starts = starts.const_data_ptr<int32_t>(), conv.columns = columns.const_data_ptr<int32_t>();
  conv.fragments = bits_of(fragments), conv.rows = rows.const_data_ptr<int32_t>();
  conv.bias = output.has_bias ? bits_of(output.bias) : nullptr;
  conv.residual = output.has_residual ? bits_of(output.residual) : nullptr;
  conv.warp_units = launch[0], conv.tile_h = launch[1], conv.units_w = launch[2], conv.pixel_warps = launch[3];
  conv.block_row_groups = launch[4], conv.slices = launch[5], conv.buffers = launch[6];
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const std::string problem =
      launch_condensed_conv2d(conv, is_bfloat16, header.data(), current_stream(x.get_device_index()));
  STD_TORCH_CHECK(problem.empty(), "condensed_conv2d did not run: ", problem);
  return output.y;
}

STABLE_TORCH_LIBRARY_IMPL(prunekit, CUDA, m) { m.impl("condensed_conv2d", TORCH_BOX(&condensed_conv2d)); }

}  // namespace
}  // namespace prunekit
