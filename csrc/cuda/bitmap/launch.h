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

// Floats that `workspace` must hold; after plan_bitmap_launch.
inline int64_t workspace_size(const BitmapConv& conv) {
  return conv.cuts > 1 ? int64_t{conv.cuts} * conv.num_units * 32 * 4 : 0;
}

// Fill what follows from the header and the block's choice; the sizes, strides and choices of BitmapConv are set.
inline GridLaunch plan_bitmap_launch(BitmapConv& conv, const int64_t* header) {
  conv.longest_aligned = header[BITMAP_LONGEST_ALIGNED];
  const int64_t run_bytes =
      4 * BITMAP_RECORD_WORDS * header[BITMAP_LONGEST] + 2 * BITMAP_ALIGNMENT * int64_t{conv.longest_aligned};
  const int64_t num_chunks = ceil_div(header[BITMAP_GROUP_CHANNELS], header[BITMAP_CHUNK_CHANNELS]);
  const bool is_known = (conv.warp_units == 8 || conv.warp_units == 14) && conv.cuts > 0 && conv.cuts <= num_chunks;
  GridLaunch launch = plan_block(conv, header, 1, run_bytes, is_known);
  if (!launch.refusal.empty()) {
    return launch;
  }
  constexpr int64_t MOST = int64_t{1} << 31;
  const int64_t tiles = launch.grid_x;
  const int64_t units = tiles * launch.grid_y * (int64_t{conv.warp_units} * conv.pixel_warps * conv.block_row_groups);
  if (tiles * conv.cuts >= MOST || units >= MOST) {
    return {0, 0, 0, launch.shared_bytes, "the grid has more blocks than a GPU takes"};
  }
  conv.num_tiles = static_cast<int>(tiles);
  conv.num_units = static_cast<int>(units);
  launch.grid_x = static_cast<unsigned>(tiles * conv.cuts);
  return launch;
}

// The launch that adds the cuts: a warp for each unit.
inline GridLaunch plan_cut_launch(const BitmapConv& conv) {
  constexpr int WARPS = CUT_THREADS / 32;
  return {static_cast<unsigned>((int64_t{conv.num_units} + WARPS - 1) / WARPS), 1, CUT_THREADS, 0, ""};
}

// Run as `launch_condensed_conv2d` does; `conv` has the workspace as well.
std::string launch_bitmap_conv2d(
    const BitmapConv& conv, const GridLaunch& launch, const int64_t* header, bool is_bfloat16, void* stream);

}  // namespace prunekit
