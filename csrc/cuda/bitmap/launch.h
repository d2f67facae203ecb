// From a convolution and its bitmap filter to the kernels' arguments: checks and arithmetic, without CUDA.
#pragma once

#include "bitmap/filter.h"
#include "condensed/launch.h"

namespace prunekit {

constexpr int CUT_THREADS = 256;  // of a block that adds cuts

// What the condensed kernel takes, but for its filter; `starts` are pairs.
struct BitmapConv : CondensedConv {
  const int32_t* records;
  const uint16_t* values;
  float* workspace;     // [cuts][units][lanes][4] sums, or null where there is one cut
  int cuts;             // blocks that share the chunks of one output
  int longest_aligned;  // values of one run, in BITMAP_ALIGNMENTs
  int num_tiles;        // of all images
  int num_units;        // that all blocks of one cut sum, of rows that there are not as well
};

inline std::array<FilterTensor, 4> bitmap_tensors(BitmapConv& conv, const int64_t* header) {
  const FragmentCounts count = FragmentCounts::of(header, CONDENSED_STEP);
  return {
      {{"starts", 2 * count.starts, &conv.starts},
       {"records", header[BITMAP_NUM_STEPS] * BITMAP_RECORD_WORDS, &conv.records},
       {"values", header[BITMAP_NUM_ALIGNED] * BITMAP_ALIGNMENT, nullptr, &conv.values},
       {"rows", count.rows, &conv.rows}}};
}

inline std::array<LaunchWord, 8> launch_words(BitmapConv& conv) {
  const auto [units, h, w, warps, groups, slices, buffers] = launch_words(static_cast<CondensedConv&>(conv));
  return {{units, h, w, warps, groups, slices, buffers, {"cuts", &conv.cuts}}};
}

struct BitmapLaunch {
  unsigned grid_x, grid_y, threads;
  int64_t shared_bytes;
  std::string refusal;  // why the kernel cannot run like this, or empty
};

// Floats that `workspace` must hold; after plan_bitmap_launch.
inline int64_t workspace_size(const BitmapConv& conv) {
  return conv.cuts > 1 ? int64_t{conv.cuts} * conv.num_units * 32 * 4 : 0;
}

// Fill what follows from the header and the block's choice; the sizes, strides and choices of BitmapConv are set.
inline BitmapLaunch plan_bitmap_launch(BitmapConv& conv, const int64_t* header) {
  const int64_t groups = header[BITMAP_GROUPS];
  conv.group_channels = header[BITMAP_GROUP_CHANNELS];
  conv.num_row_groups = ceil_div(header[BITMAP_OUT_CHANNELS] / groups, FRAGMENT_ROWS);
  conv.chunk_channels = header[BITMAP_CHUNK_CHANNELS];
  conv.num_chunks = ceil_div(conv.group_channels, conv.chunk_channels);
  conv.kernel_h = header[BITMAP_KERNEL_H];
  conv.kernel_w = header[BITMAP_KERNEL_W];
  conv.longest = header[BITMAP_LONGEST];
  conv.longest_aligned = header[BITMAP_LONGEST_ALIGNED];
  join_lines(conv);
  const bool is_choice = (conv.warp_units == 8 || conv.warp_units == 14) && conv.tile_h > 0 && conv.units_w > 0 &&
      conv.pixel_warps > 0 && conv.block_row_groups > 0 && conv.slices > 0 &&
      (conv.buffers == 1 || conv.buffers == 2) && conv.cuts > 0 && conv.cuts <= conv.num_chunks &&
      int64_t{conv.tile_h} * conv.units_w <= int64_t{conv.warp_units} * conv.pixel_warps;
  const int64_t warps = int64_t{conv.pixel_warps} * conv.block_row_groups * conv.slices;
  if (!is_choice || warps > MAX_CONDENSED_WARPS) {
    return {0, 0, 0, 0, "the launch is none that the kernel knows"};
  }
  const int64_t plane_h =
      (int64_t{conv.tile_h} - 1) * conv.stride_h + int64_t{conv.dilation_h} * (conv.kernel_h - 1) + 1;
  const int64_t plane = plane_h * conv.units_w | 1;  // odd, so that planes begin in all banks in turn
  const int64_t inputs = 16 * plane * conv.kernel_w * conv.chunk_channels;
  const int64_t filter = conv.block_row_groups *
      (4 * BITMAP_RECORD_WORDS * int64_t{conv.longest} + 2 * BITMAP_ALIGNMENT * int64_t{conv.longest_aligned});
  // Slices are added through the same memory.
  const int64_t sums = int64_t{4} * 4 * conv.warp_units * 32 * (warps - warps / conv.slices);
  const int64_t shared_bytes = conv.buffers * (inputs + filter) > sums ? conv.buffers * (inputs + filter) : sums;
  if (plane_h > (1 << 20) || shared_bytes > (int64_t{1} << 30)) {
    return {0, 0, 0, shared_bytes, "the block's tile does not fit shared memory"};
  }
  conv.plane_h = static_cast<int>(plane_h);
  conv.plane = static_cast<int>(plane);
  const int64_t tiles =
      int64_t{conv.n} * ceil_div(conv.p, conv.tile_h) * ceil_div(conv.q, int64_t{conv.units_w} * UNIT_PIXELS);
  const int64_t rows = groups * ceil_div(conv.num_row_groups, conv.block_row_groups);
  constexpr int64_t MOST = int64_t{1} << 31;
  const int64_t block_units = int64_t{conv.warp_units} * conv.pixel_warps * conv.block_row_groups;
  if (rows > 65535 || tiles * conv.cuts >= MOST || tiles * rows * block_units >= MOST) {
    return {0, 0, 0, shared_bytes, "the grid has more blocks than a GPU takes"};
  }
  conv.num_tiles = static_cast<int>(tiles);
  conv.num_units = static_cast<int>(tiles * rows * block_units);
  return {
      static_cast<unsigned>(tiles * conv.cuts), static_cast<unsigned>(rows), static_cast<unsigned>(32 * warps),
      shared_bytes, ""};
}

// The launch that adds the cuts: a warp for each unit.
inline BitmapLaunch plan_cut_launch(const BitmapConv& conv) {
  constexpr int WARPS = CUT_THREADS / 32;
  return {static_cast<unsigned>((int64_t{conv.num_units} + WARPS - 1) / WARPS), 1, CUT_THREADS, 0, ""};
}

// Run on CUDA's current device and `stream` (a cudaStream_t); plan_bitmap_launch has filled `conv` and made `launch`.
// Returns why it could not be launched, or an empty text.
std::string launch_bitmap_conv2d(const BitmapConv& conv, const BitmapLaunch& launch, bool is_bfloat16, void* stream);

}  // namespace prunekit
