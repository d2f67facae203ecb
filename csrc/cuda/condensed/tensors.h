// Checks of the filters that tensor cores read, and what their kernels' arguments have in common.
#pragma once

#include "condensed/launch.h"
#include "conv_tensors.h"

namespace prunekit {

inline const uint16_t* bits_of(const Tensor& t) { return static_cast<const uint16_t*>(t.const_data_ptr()); }

// x's dtype must be float16 or bfloat16; returns whether it is bfloat16.
inline bool check_half(const ConvOp& op, const Tensor& x) {
  const bool is_bfloat16 = x.scalar_type() == ScalarType::BFloat16;
  op.check_on_device(x, x, "x", is_bfloat16 ? ScalarType::BFloat16 : ScalarType::Half);
  return is_bfloat16;
}

// `words` is the header's length; it begins with those of a fragment filter.
inline ConvShape read_fragment_header(
    const ConvOp& op, const Tensor& x, const std::vector<int64_t>& header, size_t words,
    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
  STD_TORCH_CHECK(header.size() == words, op.name, " expects a filter's header of ", words, " numbers");
  for (const int word :
       {FRAGMENT_OUT_CHANNELS, FRAGMENT_GROUP_CHANNELS, FRAGMENT_KERNEL_H, FRAGMENT_KERNEL_W, FRAGMENT_GROUPS,
        FRAGMENT_CHUNK_CHANNELS}) {
    STD_TORCH_CHECK(header[word] > 0 && header[word] < (1 << 29), "the filter's header is damaged");
  }
  for (const int word : {FRAGMENT_STEPS, FRAGMENT_LONGEST}) {
    STD_TORCH_CHECK(header[word] >= 0 && header[word] < (1 << 29), "the filter's header is damaged");
  }
  return op.read_shape(
      x, header[FRAGMENT_OUT_CHANNELS], header[FRAGMENT_GROUP_CHANNELS], header[FRAGMENT_KERNEL_H],
      header[FRAGMENT_KERNEL_W], header[FRAGMENT_GROUPS], stride, padding, dilation);
}

// The tensors of a filter made of such steps; `metadata` is null where a step has none.
inline void check_fragments(
    const ConvOp& op, const Tensor& x, const std::vector<int64_t>& header, const StepLayout& step, const Tensor& starts,
    const Tensor& columns, const Tensor& fragments, const Tensor* metadata, const Tensor& rows) {
  op.check_on_device(x, starts, "starts", ScalarType::Int);
  op.check_on_device(x, columns, "columns", ScalarType::Int);
  op.check_on_device(x, fragments, "fragments", x.scalar_type());
  op.check_on_device(x, rows, "rows", ScalarType::Int);
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t group_rows = FRAGMENT_ROWS * step.fragments;
  const int64_t row_groups =
      header[FRAGMENT_GROUPS] * ceil_div(header[FRAGMENT_OUT_CHANNELS] / header[FRAGMENT_GROUPS], group_rows);
  const int64_t runs = row_groups * ceil_div(header[FRAGMENT_GROUP_CHANNELS], header[FRAGMENT_CHUNK_CHANNELS]);
  bool has_metadata = true;
  if (metadata) {
    op.check_on_device(x, *metadata, "metadata", ScalarType::Int);
    has_metadata = metadata->is_contiguous() && metadata->numel() == header[FRAGMENT_STEPS] * step.metadata * 4;
  }
  STD_TORCH_CHECK(
      starts.is_contiguous() && columns.is_contiguous() && fragments.is_contiguous() && rows.is_contiguous() &&
          has_metadata && rows.numel() == row_groups * group_rows && starts.numel() == runs + 1 &&
          columns.numel() == header[FRAGMENT_STEPS] * step.columns &&
          fragments.numel() == header[FRAGMENT_STEPS] * step.fragments * 32 * 8,
      op.name, "'s filter is damaged: its header does not fit its ", starts.numel(), " starts and ",
      columns.numel() / step.columns, " steps");
}

// Fill the kernels' arguments but for what plan_condensed_launch fills.
inline CondensedConv fill_fragments(
    const Tensor& x, const ConvShape& shape, const ConvOutput& output, const Tensor& starts, const Tensor& columns,
    const Tensor& fragments, const Tensor& rows, const std::string& activation, double negative_slope,
    const std::vector<int64_t>& launch) {
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
  return conv;
}

}  // namespace prunekit
