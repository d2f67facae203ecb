// bitmap_conv2d on CUDA tensors, through torch's stable ABI: compiled without CUDA's headers, and against any torch.
#include "bitmap/launch.h"
#include "condensed/tensors.h"

namespace prunekit {
namespace {

constexpr ConvOp OP{"bitmap_conv2d", "starts, records and rows int32, all else of x's dtype, float16 or bfloat16"};

ConvShape read_header(
    const Tensor& x, const std::vector<int64_t>& header, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
  STD_TORCH_CHECK(header.size() == BITMAP_HEADER_WORDS, "the bitmap filter's header has a wrong length");
  for (const int word :
       {BITMAP_OUT_CHANNELS, BITMAP_GROUP_CHANNELS, BITMAP_KERNEL_H, BITMAP_KERNEL_W, BITMAP_GROUPS,
        BITMAP_CHUNK_CHANNELS}) {
    STD_TORCH_CHECK(header[word] > 0 && header[word] < (1 << 29), "the bitmap filter's header is damaged");
  }
  for (const int word : {BITMAP_STEPS, BITMAP_LONGEST, BITMAP_ALIGNED, BITMAP_LONGEST_ALIGNED}) {
    STD_TORCH_CHECK(header[word] >= 0 && header[word] < (1 << 29), "the bitmap filter's header is damaged");
  }
  return OP.read_shape(
      x, header[BITMAP_OUT_CHANNELS], header[BITMAP_GROUP_CHANNELS], header[BITMAP_KERNEL_H], header[BITMAP_KERNEL_W],
      header[BITMAP_GROUPS], stride, padding, dilation);
}

void check_filter(
    const Tensor& x, const std::vector<int64_t>& header, const Tensor& starts, const Tensor& records,
    const Tensor& values, const Tensor& rows) {
  OP.check_on_device(x, starts, "starts", ScalarType::Int);
  OP.check_on_device(x, records, "records", ScalarType::Int);
  OP.check_on_device(x, values, "values", x.scalar_type());
  OP.check_on_device(x, rows, "rows", ScalarType::Int);
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t row_groups =
      header[BITMAP_GROUPS] * ceil_div(header[BITMAP_OUT_CHANNELS] / header[BITMAP_GROUPS], FRAGMENT_ROWS);
  const int64_t runs = row_groups * ceil_div(header[BITMAP_GROUP_CHANNELS], header[BITMAP_CHUNK_CHANNELS]);
  STD_TORCH_CHECK(
      starts.is_contiguous() && records.is_contiguous() && values.is_contiguous() && rows.is_contiguous() &&
          rows.numel() == row_groups * FRAGMENT_ROWS && starts.numel() == 2 * (runs + 1) &&
          records.numel() == header[BITMAP_STEPS] * BITMAP_RECORD_WORDS &&
          values.numel() == header[BITMAP_ALIGNED] * BITMAP_ALIGNMENT,
      "the bitmap filter is damaged: its header does not fit its ", starts.numel() / 2, " starts, ",
      records.numel() / BITMAP_RECORD_WORDS, " steps and ", values.numel(), " values");
}

Tensor bitmap_conv2d(
    const Tensor& x, const std::vector<int64_t>& header, const Tensor& starts, const Tensor& records,
    const Tensor& values, const Tensor& rows, const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
    const std::string& activation, double negative_slope, const std::vector<int64_t>& launch) {
  const bool is_bfloat16 = check_half(OP, x);
  const ConvShape shape = read_header(x, header, stride, padding, dilation);
  check_filter(x, header, starts, records, values, rows);
  check_choices(activation, launch, 8);
  const ConvOutput output = ConvOutput::of(OP, x, shape, bias, residual);
  if (output.y.numel() == 0) {
    return output.y;
  }
  BitmapConv conv{};
  fill_conv(
      conv, bits_of(x), static_cast<uint16_t*>(output.y.mutable_data_ptr()), x, output.y, shape, activation,
      negative_slope);
  conv.starts = starts.const_data_ptr<int32_t>(), conv.records = records.const_data_ptr<int32_t>();
  conv.values = bits_of(values), conv.rows = rows.const_data_ptr<int32_t>();
  conv.bias = output.has_bias ? bits_of(output.bias) : nullptr;
  conv.residual = output.has_residual ? bits_of(output.residual) : nullptr;
  conv.warp_units = launch[0], conv.tile_h = launch[1], conv.units_w = launch[2], conv.pixel_warps = launch[3];
  conv.block_row_groups = launch[4], conv.slices = launch[5], conv.buffers = launch[6], conv.cuts = launch[7];
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const BitmapLaunch plan = plan_bitmap_launch(conv, header.data());
  STD_TORCH_CHECK(plan.refusal.empty(), "bitmap_conv2d did not run: ", plan.refusal);
  Tensor workspace = x;
  if (workspace_size(conv) > 0) {
    workspace = torch::stable::new_empty(x, {workspace_size(conv)}, ScalarType::Float);
    conv.workspace = workspace.mutable_data_ptr<float>();
  }
  const std::string problem = launch_bitmap_conv2d(conv, plan, is_bfloat16, current_stream(x.get_device_index()));
  STD_TORCH_CHECK(problem.empty(), "bitmap_conv2d did not run: ", problem);
  return output.y;
}

STABLE_TORCH_LIBRARY_IMPL(prunekit, CUDA, m) { m.impl("bitmap_conv2d", TORCH_BOX(&bitmap_conv2d)); }

}  // namespace
}  // namespace prunekit
