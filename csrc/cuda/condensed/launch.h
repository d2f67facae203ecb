// From a convolution and its fragment filter to the kernel's arguments: checks and arithmetic, without CUDA.
#pragma once

#include <array>
#include <cstdint>

#include "condensed/filter.h"

namespace prunekit {

constexpr int UNIT_PIXELS = 8;  // side by side in a line of the output: 16 bytes, one row of a matrix that a warp loads
constexpr int MAX_CONDENSED_WARPS = 8;  // two such blocks of a multiprocessor have 128 registers a thread

// What a step is made of: weights of `fragments` times FRAGMENT_ROWS rows, 512 bytes each, the places of `columns`
// taps, and `metadata` times 16 bytes that say which columns weights stand in.
struct StepLayout {
  int fragments, columns, metadata;

  // In units of 16 bytes.
  constexpr int size() const { return fragments * 32 + columns / 4 + metadata; }
};

constexpr StepLayout CONDENSED_STEP{1, STEP_COLUMNS, 0};

// All sizes in elements; the strides of x, y and the residual are any, so channels-last needs no copy. Elements are the
// bits of a float16 or bfloat16.
struct CondensedConv {
  const uint16_t* x;
  const int32_t* starts;
  const int32_t* columns;
  const uint16_t* fragments;
  const int32_t* metadata;  // or null: of steps that have some
  const int32_t* rows;
  const uint16_t* bias;  // or null
  const uint16_t* residual;  // of y's strides, or null
  uint16_t* y;
  int64_t x_stride_n, x_stride_c, x_stride_h, x_stride_w;
  int64_t y_stride_n, y_stride_k, y_stride_p, y_stride_q;
  int n, h, w, p, q;
  int group_channels, num_row_groups, num_chunks, chunk_channels, kernel_h, kernel_w;
  int stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int activation;  // an ActivationPlace
  float negative_slope;
  // A block makes tile_h × units_w units, warp_units for each of pixel_warps, times block_row_groups, times slices of
  // each run's steps.
  int warp_units, tile_h, units_w, pixel_warps, block_row_groups, slices;
  int buffers;  // 2: the next chunk is copied while one is read
  int plane_h, plane;  // lines, and units, of one channel's inputs at one tap column
  int longest;  // steps of one run
};

// How many elements the tensors of a filter of such steps have.
struct FragmentCounts {
  int64_t starts, columns, fragments, metadata, rows;

  static FragmentCounts of(const int64_t* header, const StepLayout& step) {
    const int64_t group_rows = FRAGMENT_ROWS * step.fragments, steps = header[FRAGMENT_NUM_STEPS];
    const int64_t row_groups =
        header[FRAGMENT_GROUPS] * ceil_div(header[FRAGMENT_OUT_CHANNELS] / header[FRAGMENT_GROUPS], group_rows);
    const int64_t runs = row_groups * ceil_div(header[FRAGMENT_GROUP_CHANNELS], header[FRAGMENT_CHUNK_CHANNELS]);
    return {
        runs + 1, steps * step.columns, steps * step.fragments * 32 * 8, steps * step.metadata * 4,
        row_groups * group_rows};
  }
};

inline std::array<FilterTensor, 4> condensed_tensors(CondensedConv& conv, const int64_t* header) {
  const FragmentCounts count = FragmentCounts::of(header, CONDENSED_STEP);
  return {
      {{"starts", count.starts, &conv.starts},
       {"columns", count.columns, &conv.columns},
       {"fragments", count.fragments, nullptr, &conv.fragments},
       {"rows", count.rows, &conv.rows}}};
}

inline std::array<LaunchWord, 7> launch_words(CondensedConv& conv) {
  return {
      {{"warp_units", &conv.warp_units},
       {"tile_h", &conv.tile_h},
       {"units_w", &conv.units_w},
       {"pixel_warps", &conv.pixel_warps},
       {"row_groups", &conv.block_row_groups},
       {"slices", &conv.slices},
       {"buffers", &conv.buffers}}};
}

// The kernel's width and stride that a line of inputs is read with at once (shifts 1, stride 0: any, tap by tap).
struct InputWindow {
  int shifts, stride;

  static InputWindow of(const CondensedConv& conv) {
    const bool is_wide = conv.kernel_w == 3 && conv.dilation_w == 1 && conv.stride_w <= 2;
    return is_wide ? InputWindow{3, conv.stride_w} : InputWindow{1, 0};
  }
};

// A 1×1 kernel of stride 1 sees an image as one long line, where memory has it so: then no line's end is cut off.
inline void join_lines(CondensedConv& conv) {
  if (conv.kernel_h == 1 && conv.kernel_w == 1 && conv.stride_h == 1 && conv.stride_w == 1 && conv.padding_h == 0 &&
      conv.padding_w == 0 && conv.x_stride_h == conv.w * conv.x_stride_w &&
      conv.y_stride_p == conv.q * conv.y_stride_q && int64_t{conv.h} * conv.w < (int64_t{1} << 31)) {
    conv.w = conv.q = conv.h * conv.w;
    conv.h = conv.p = 1;
  }
}

// Fill what follows from the header and the block's choice; the sizes, strides and choices of CondensedConv are set.
// `run_bytes` is what the longest run takes in shared memory, and `is_known` whether there is a kernel for the choice.
inline GridLaunch plan_block(
    CondensedConv& conv, const int64_t* header, int64_t fragments, int64_t run_bytes, bool is_known) {
  const int64_t groups = header[FRAGMENT_GROUPS];
  conv.group_channels = header[FRAGMENT_GROUP_CHANNELS];
  conv.num_row_groups = ceil_div(header[FRAGMENT_OUT_CHANNELS] / groups, FRAGMENT_ROWS * fragments);
  conv.chunk_channels = header[FRAGMENT_CHUNK_CHANNELS];
  conv.num_chunks = ceil_div(conv.group_channels, conv.chunk_channels);
  conv.kernel_h = header[FRAGMENT_KERNEL_H];
  conv.kernel_w = header[FRAGMENT_KERNEL_W];
  conv.longest = header[FRAGMENT_LONGEST];
  join_lines(conv);
  const bool is_choice = is_known && conv.tile_h > 0 && conv.units_w > 0 && conv.pixel_warps > 0 &&
      conv.block_row_groups > 0 && conv.slices > 0 && (conv.buffers == 1 || conv.buffers == 2) &&
      int64_t{conv.tile_h} * conv.units_w <= int64_t{conv.warp_units} * conv.pixel_warps;
  const int64_t warps = int64_t{conv.pixel_warps} * conv.block_row_groups * conv.slices;
  if (!is_choice || warps > MAX_CONDENSED_WARPS) {
    return {0, 0, 0, 0, "the launch is none that the kernel knows"};
  }
  const int64_t plane_h =
      (int64_t{conv.tile_h} - 1) * conv.stride_h + int64_t{conv.dilation_h} * (conv.kernel_h - 1) + 1;
  // An odd number of units, so that planes begin in all banks in turn.
  const int64_t plane = plane_h * conv.units_w | 1;
  const int64_t inputs = 16 * plane * conv.kernel_w * conv.chunk_channels;
  const int64_t filter = run_bytes * conv.block_row_groups;
  // Slices are added through the same memory.
  const int64_t sums = int64_t{4} * 4 * conv.warp_units * fragments * 32 * (warps - warps / conv.slices);
  const int64_t shared_bytes = conv.buffers * (inputs + filter) > sums ? conv.buffers * (inputs + filter) : sums;
  if (plane_h > (1 << 20) || shared_bytes > (int64_t{1} << 30)) {
    return {0, 0, 0, shared_bytes, "the block's tile does not fit shared memory"};
  }
  conv.plane_h = static_cast<int>(plane_h);
  conv.plane = static_cast<int>(plane);
  const int64_t tiles =
      int64_t{conv.n} * ceil_div(conv.p, conv.tile_h) * ceil_div(conv.q, int64_t{conv.units_w} * UNIT_PIXELS);
  const int64_t rows = groups * ceil_div(conv.num_row_groups, conv.block_row_groups);
  if (tiles >= (int64_t{1} << 31) || rows > 65535) {
    return {0, 0, 0, shared_bytes, "the grid has more blocks than a GPU takes"};
  }
  return {
      static_cast<unsigned>(tiles), static_cast<unsigned>(rows), static_cast<unsigned>(32 * warps), shared_bytes, ""};
}

inline GridLaunch plan_condensed_launch(CondensedConv& conv, const int64_t* header) {
  const int64_t run_bytes = int64_t{16} * CONDENSED_STEP.size() * header[FRAGMENT_LONGEST];
  return plan_block(conv, header, 1, run_bytes, conv.warp_units == 4 || conv.warp_units == 8);
}

// Run on CUDA's current device and `stream` (a cudaStream_t), as it was planned. Returns why it could not be launched, or
// an empty text.
std::string launch_condensed_conv2d(
    const CondensedConv& conv, const GridLaunch& launch, const int64_t* header, bool is_bfloat16, void* stream);

}  // namespace prunekit
