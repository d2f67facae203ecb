// record_conv2d on CUDA tensors, through torch's stable ABI: compiled without CUDA's headers, and against any torch.
#include "conv_tensors.h"
#include "record/launch.h"

namespace prunekit {
namespace {

constexpr ConvOp OP{"record_conv2d", "records and starts int32, all else float32"};

ConvShape read_header(
    const Tensor& x, const std::vector<int64_t>& header, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
  STD_TORCH_CHECK(header.size() == RECORD_HEADER_WORDS, "the record filter's header has a wrong length");
  for (const int word :
       {RECORD_OUT_CHANNELS, RECORD_GROUP_CHANNELS, RECORD_KERNEL_H, RECORD_KERNEL_W, RECORD_GROUPS,
        RECORD_CHUNK_CHANNELS, RECORD_SLICES, RECORD_WINDOW_TAPS}) {
    STD_TORCH_CHECK(header[word] > 0 && header[word] < (1 << 29), "the record filter's header is damaged");
  }
  return OP.read_shape(
      x, header[RECORD_OUT_CHANNELS], header[RECORD_GROUP_CHANNELS], header[RECORD_KERNEL_H], header[RECORD_KERNEL_W],
      header[RECORD_GROUPS], stride, padding, dilation);
}

void check_filter(
    const Tensor& x, const std::vector<int64_t>& header, const Tensor& starts, const Tensor& records,
    const Tensor& rows) {
  OP.check_on_device(x, starts, "starts", ScalarType::Int);
  OP.check_on_device(x, records, "records", ScalarType::Int);
  OP.check_on_device(x, rows, "rows", ScalarType::Int);
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t segments = header[RECORD_GROUPS] *
      ceil_div(header[RECORD_OUT_CHANNELS] / header[RECORD_GROUPS], RECORD_ROWS) *
      ceil_div(header[RECORD_GROUP_CHANNELS], header[RECORD_CHUNK_CHANNELS]) * header[RECORD_SLICES];
  STD_TORCH_CHECK(
      starts.is_contiguous() && records.is_contiguous() && rows.is_contiguous() &&
          rows.numel() == header[RECORD_OUT_CHANNELS] && starts.numel() == segments + 1 &&
          records.numel() == 2 * header[RECORD_COUNT],
      "the record filter is damaged: its header does not fit its ", starts.numel(), " starts and ", records.numel() / 2,
      " records");
}

Tensor record_conv2d(
    const Tensor& x, const std::vector<int64_t>& header, const Tensor& starts, const Tensor& records,
    const Tensor& rows, const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
    const std::string& activation, double negative_slope, const std::vector<int64_t>& launch) {
  OP.check_on_device(x, x, "x", ScalarType::Float);
  const ConvShape shape = read_header(x, header, stride, padding, dilation);
  check_filter(x, header, starts, records, rows);
  check_choices(activation, launch, 5);
  const ConvOutput output = ConvOutput::of(OP, x, shape, bias, residual);
  if (output.y.numel() == 0) {
    return output.y;
  }
  RecordConv conv{};
  fill_conv(
      conv, x.const_data_ptr<float>(), output.y.mutable_data_ptr<float>(), x, output.y, shape, activation,
      negative_slope);
  conv.starts = starts.const_data_ptr<int32_t>(), conv.records = records.const_data_ptr<int32_t>();
  conv.rows = rows.const_data_ptr<int32_t>();
  conv.bias = output.has_bias ? output.bias.const_data_ptr<float>() : nullptr;
  conv.residual = output.has_residual ? output.residual.const_data_ptr<float>() : nullptr;
  conv.tile_h = launch[0], conv.lanes = launch[1], conv.lanes_w = launch[2];
  conv.block_row_groups = launch[3], conv.buffers = launch[4];
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const std::string problem = launch_record_conv2d(conv, header.data(), current_stream(x.get_device_index()));
  STD_TORCH_CHECK(problem.empty(), "record_conv2d did not run: ", problem);
  return output.y;
}

STABLE_TORCH_LIBRARY_IMPL(prunekit, CUDA, m) { m.impl("record_conv2d", TORCH_BOX(&record_conv2d)); }

}  // namespace
}  // namespace prunekit
