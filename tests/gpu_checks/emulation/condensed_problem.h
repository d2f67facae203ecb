// Reads a problem of the tensor cores' kernels as tests/support/emulated_kernels.py writes it, and runs it.
#pragma once

#include "condensed/conv2d.cuh"

#include "problem_file.h"

// Call run(conv, is_bfloat16, header, seed); steps that have metadata bring them behind their fragments.
template <typename Run>
void run_condensed_problem(const int64_t* words, unsigned seed, std::FILE* output, bool has_metadata, const Run& run) {
  prunekit::CondensedConv conv{};
  int is_bfloat16 = 0;
  int64_t at = 0, length = 0;
  for (int* size :
       {&is_bfloat16,     &conv.n,          &conv.h,         &conv.w,         &conv.p,           &conv.q,
        &conv.stride_h,   &conv.stride_w,   &conv.padding_h, &conv.padding_w, &conv.dilation_h,  &conv.dilation_w,
        &conv.activation, &conv.warp_units, &conv.tile_h,    &conv.units_w,   &conv.pixel_warps, &conv.block_row_groups,
        &conv.slices,     &conv.buffers}) {
    *size = static_cast<int>(words[at++]);
  }
  for (int64_t* stride :
       {&conv.x_stride_n, &conv.x_stride_c, &conv.x_stride_h, &conv.x_stride_w, &conv.y_stride_n, &conv.y_stride_k,
        &conv.y_stride_p, &conv.y_stride_q}) {
    *stride = words[at++];
  }
  const auto slope = read_array<float>(length);
  conv.negative_slope = slope[0];
  const auto header = read_array<int64_t>(length);
  const auto starts = read_array<int32_t>(length), columns = read_array<int32_t>(length);
  const auto fragments = read_array<uint16_t>(length);
  const auto metadata = has_metadata ? read_array<int32_t>(length) : nullptr;
  const auto rows = read_array<int32_t>(length);
  int64_t x_size = 0, bias_size = 0, residual_size = 0, y_size = 0;
  const auto x = read_array<uint16_t>(x_size), bias = read_array<uint16_t>(bias_size);
  const auto residual = read_array<uint16_t>(residual_size);
  const auto y = read_array<uint16_t>(y_size);  // poisoned by the caller
  conv.starts = starts.get(), conv.columns = columns.get(), conv.fragments = fragments.get(), conv.rows = rows.get();
  conv.metadata = metadata.get();
  conv.x = x.get(), conv.y = y.get();
  conv.bias = bias_size ? bias.get() : nullptr;
  conv.residual = residual_size ? residual.get() : nullptr;
  run(conv, is_bfloat16, header.get(), seed);
  std::fwrite(y.get(), sizeof(uint16_t), y_size, output);
}
