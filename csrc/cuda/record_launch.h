// From a convolution and its record filter to the kernel's arguments: checks and arithmetic, without CUDA.
#pragma once

#include <cstdint>
#include <string>

#include "../record_filter.h"

namespace prunekit {

constexpr int TILE_W = 2;  // pixels in a row of a lane's tile: lanes side by side load 8 bytes each, without bank conflicts
// Registers allow so many warps; more for the kernels that keep fewer sums and inputs.
constexpr int max_record_warps(int tile_h, int taps, int stride) {
  return tile_h == 6 || (taps == 9 && stride == 2) ? 12 : 16;
}

// All sizes in elements; the strides of x, y and the residual are any, so channels-last needs no copy.
struct RecordConv {
  const float* x;
  const int32_t* starts;
  const int32_t* records;
  const int32_t* rows;
  const float* bias;      // or null
  const float* residual;  // of y's strides, or null
  float* y;
  int64_t x_stride_n, x_stride_c, x_stride_h, x_stride_w;
  int64_t y_stride_n, y_stride_k, y_stride_p, y_stride_q;
  int n, h, w, p, q;
  int groups, group_channels, rows_per_group, num_row_groups, num_chunks, chunk_channels, slices;
  int stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int activation;  // an ActivationPlace
  float negative_slope;
  // A lane's tile is tile_h × TILE_W pixels; a block is lanes_h × lanes_w lanes over pixel_warps warps, times
  // block_row_groups, times slices.
  int tile_h, lanes_h, lanes_w, pixel_warps, block_row_groups;
  int buffers;                // 2: the next chunk is copied while one is read
  int plane_h, pitch, plane;  // of the haloed tile of one channel
  int max_records;            // of one run
  int starts_bytes;           // of shared memory, before the tiles: where the segments begin
};

// The taps that one LOAD_WINDOW brings (a 3×3 kernel's, or those of WINDOW_CHANNELS channels of a 1×1 kernel), and the
// stride that its kernel is compiled for (0: any; -1: none).
struct RecordWindow {
  int taps, stride;

  static RecordWindow of(const RecordConv& conv, int kernel_h, int kernel_w, int window_taps) {
    const bool is_plain = conv.dilation_h == 1 && conv.dilation_w == 1 && conv.stride_h == conv.stride_w;
    const bool is_point = kernel_h == 1 && kernel_w == 1 && conv.stride_h == 1 && conv.stride_w == 1;
    if (window_taps == 9) {
      return {9, kernel_h == 3 && kernel_w == 3 && is_plain && conv.stride_h <= 2 ? conv.stride_h : -1};
    }
    if (window_taps == WINDOW_CHANNELS) {
      return {WINDOW_CHANNELS, is_point ? 1 : -1};
    }
    return {1, window_taps == 1 ? 0 : -1};
  }
};

struct RecordLaunch {
  unsigned grid_x, grid_y, threads;
  int64_t shared_bytes;
  std::string refusal;  // why the kernel cannot run like this, or empty
};

// Fill what follows from the header, the kernel's size and the block's choice; RecordConv's own sizes are set.
inline RecordLaunch plan_record_launch(RecordConv& conv, const int64_t* header) {
  const int kernel_h = header[RECORD_KERNEL_H], kernel_w = header[RECORD_KERNEL_W];
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  conv.groups = header[RECORD_GROUPS];
  conv.group_channels = header[RECORD_GROUP_CHANNELS];
  conv.rows_per_group = header[RECORD_OUT_CHANNELS] / conv.groups;
  conv.num_row_groups = ceil_div(conv.rows_per_group, RECORD_ROWS);
  conv.chunk_channels = header[RECORD_CHUNK_CHANNELS];
  conv.num_chunks = ceil_div(conv.group_channels, conv.chunk_channels);
  conv.slices = header[RECORD_SLICES];
  conv.max_records = header[RECORD_LONGEST];
  const RecordWindow window = RecordWindow::of(conv, kernel_h, kernel_w, header[RECORD_WINDOW_TAPS]);
  if (window.stride < 0) {
    return {0, 0, 0, 0, "the record filter was packed for another stride or dilation"};
  }
  const bool has_tall_kernel = window.stride == 1;
  const bool is_choice =
      (conv.tile_h == 4 || (conv.tile_h == 6 && has_tall_kernel)) && conv.lanes_h > 0 && conv.lanes_w > 0 &&
      conv.block_row_groups > 0 && conv.slices > 0 && (conv.buffers == 1 || conv.buffers == 2) &&
      conv.chunk_channels % (window.taps == WINDOW_CHANNELS ? WINDOW_CHANNELS : 1) == 0;
  conv.pixel_warps = is_choice ? ceil_div(int64_t{conv.lanes_h} * conv.lanes_w, 32) : 1;
  const int64_t warps = int64_t{conv.pixel_warps} * conv.block_row_groups * conv.slices;
  if (!is_choice || warps > max_record_warps(conv.tile_h, window.taps, window.stride)) {
    return {0, 0, 0, 0, "the launch is none that the kernel knows"};
  }
  const int64_t reach_h = int64_t{conv.dilation_h} * (kernel_h - 1), reach_w = int64_t{conv.dilation_w} * (kernel_w - 1);
  const int64_t plane_h = (int64_t{conv.lanes_h} * conv.tile_h - 1) * conv.stride_h + reach_h + 1;
  const int64_t plane_w = (int64_t{conv.lanes_w} * TILE_W - 1) * conv.stride_w + reach_w + 1;
  const int64_t pitch = ceil_div(plane_w, 4) * 4;
  const int64_t tile = 4 * plane_h * pitch * conv.chunk_channels;
  // Slices are added through the tiles' memory, RECORD_ROWS · tile pixels at a time per row.
  const int64_t sums = int64_t{4} * (conv.slices - 1) * conv.tile_h * TILE_W * 32 * conv.pixel_warps * conv.block_row_groups;
  const int64_t records = int64_t{8} * conv.block_row_groups * conv.max_records;
  const int64_t starts = ceil_div(conv.block_row_groups * conv.num_chunks * int64_t{conv.slices} + 1, 4) * 16;
  const int64_t staged = conv.buffers * (tile + records);
  const int64_t shared_bytes = starts + (staged > sums ? staged : sums);
  if (shared_bytes > (int64_t{1} << 30)) {
    return {0, 0, 0, shared_bytes, "the block's tile does not fit shared memory"};
  }
  conv.starts_bytes = static_cast<int>(starts);
  conv.plane_h = static_cast<int>(plane_h);
  conv.pitch = static_cast<int>(pitch);
  conv.plane = conv.plane_h * conv.pitch;
  const int64_t tiles = int64_t{conv.n} * ceil_div(conv.p, int64_t{conv.lanes_h} * conv.tile_h) *
      ceil_div(conv.q, int64_t{conv.lanes_w} * TILE_W);
  const int64_t rows = conv.groups * ceil_div(conv.num_row_groups, conv.block_row_groups);
  if (tiles >= (int64_t{1} << 31) || rows > 65535) {
    return {0, 0, 0, shared_bytes, "the grid has more blocks than a GPU takes"};
  }
  return {static_cast<unsigned>(tiles), static_cast<unsigned>(rows), static_cast<unsigned>(32 * warps), shared_bytes, ""};
}

}  // namespace prunekit
