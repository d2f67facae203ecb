// From a convolution and its record filter to the kernel's arguments: checks and arithmetic, without CUDA.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <numeric>

#include "epilogue.h"
#include "record/filter.h"

#ifdef __CUDACC__
#define PRUNEKIT_DEVICE __device__
#else
#define PRUNEKIT_DEVICE
#endif

namespace prunekit {

// Pixels in a row of a lane's tile: lanes side by side load 8 bytes each, without bank conflicts.
constexpr int TILE_W = 2;
// Bytes of shared memory for each output channel of a block (record/store.cuh).
constexpr int RECORD_ROW_BYTES = 16;
// Registers allow so many warps; more for the kernels that keep fewer sums and inputs.
constexpr int max_record_warps(int tile_h, int taps, int stride) { return tile_h == 6 ? 12 : 16; }

// Division of numbers below 2^16 by a number that the launch knows.
struct Divisor {
  unsigned divisor, factor;

  static Divisor by(int64_t divisor) {
    const int64_t factor = ((int64_t{1} << 32) + divisor - 1) / divisor;  // at divisor 1 too large for the field
    return {static_cast<unsigned>(divisor), static_cast<unsigned>(divisor > 1 ? factor : 0)};
  }
  PRUNEKIT_DEVICE unsigned of(unsigned number) const {
    return factor ? static_cast<unsigned>(static_cast<uint64_t>(number) * factor >> 32) : number;
  }
};

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
  // A lane's tile is tile_h × TILE_W pixels. The output is cut into bands of lanes_w tiles, and a band, line by line, into
  // runs of `lanes` tiles: a block has one run, over pixel_warps warps, times block_row_groups, times slices.
  int tile_h, lanes, lanes_w, pixel_warps, block_row_groups;
  int buffers;       // 2: the next chunk is copied while one is read
  int max_records;   // of one run
  int rows_at_once;  // of a row group, whose sums are in shared memory together at the end
  int row_parts, line_parts;  // slices share these rows, and lines of pixels, by the parts that are stored
  int tiles_at;      // bytes of shared memory before the tiles: the output channels, and where the segments begin
  // The haloed tile of one channel in shared memory: plane_h lines of `pitch`, and `skew` more after the lines of each line
  // of lanes, `plane` in all. With windows of stride 2 a line has its even columns first, its odd ones from its middle on.
  int plane_h, pitch, skew, plane;
  // In bytes: from one channel of the tile to the next, and what LOAD_WINDOW adds on its way (record_programs.py).
  int plane_bytes, steps[4];
  // So many threads share a place of the tile's copy, each with every so manieth channel, which are so far apart.
  int copy_parts, copy_to;
  int64_t copy_from;
  int bands, runs, band_lanes, row_blocks;  // of the output, of a band, the band's tiles, and blocks of row groups
  Divisor by_pixel_warps, by_row_groups, by_lanes_w, by_pitch, by_places;  // places of a tile's copy: plane_h · pitch
  Divisor by_copy_parts;  // of the channels of a chunk
  int x_step_h, x_step_w, y_step_p, y_step_q;  // strides as 32 bits
};

inline std::array<FilterTensor, 3> record_tensors(RecordConv& conv, const int64_t* header) {
  const int64_t segments = header[RECORD_GROUPS] *
      ceil_div(header[RECORD_OUT_CHANNELS] / header[RECORD_GROUPS], RECORD_ROWS) *
      ceil_div(header[RECORD_GROUP_CHANNELS], header[RECORD_CHUNK_CHANNELS]) * header[RECORD_SLICES];
  return {
      {{"starts", segments + 1, &conv.starts},
       {"records", 2 * header[RECORD_NUM_RECORDS], &conv.records},
       {"rows", header[RECORD_OUT_CHANNELS], &conv.rows}}};
}

inline std::array<LaunchWord, 5> launch_words(RecordConv& conv) {
  return {
      {{"tile_h", &conv.tile_h},
       {"lanes", &conv.lanes},
       {"lanes_w", &conv.lanes_w},
       {"row_groups", &conv.block_row_groups},
       {"buffers", &conv.buffers}}};
}

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

// Lines of lanes that a run touches at most, where it begins anywhere in a line that is a multiple of its length.
inline int64_t touched_lines(int64_t lines, int64_t lanes, int64_t lanes_w) {
  const int64_t first = lines * lanes_w <= lanes ? 0 : lanes_w - std::gcd(lanes, lanes_w);
  const int64_t touched = (first + lanes + lanes_w - 1) / lanes_w;
  return touched < lines ? touched : lines;
}

// Set the tile's sizes from plane_h and the width it needs. Lanes of a warp load 8 bytes each, 16 lanes at a time. They
// find 16 different pairs of banks where a line of lanes begins as many pairs behind the line before, modulo 16, as it has
// lanes: what the lines between do not give, `skew` does. Windows of one tap are loaded otherwise and need none.
inline void lay_out_tile(RecordConv& conv, int64_t width, int window_stride) {
  const int64_t lines = int64_t{conv.tile_h} * conv.stride_h, turns = (conv.plane_h - 1) / lines;
  const int64_t step = window_stride == 1 ? 2 : 4;  // so that what is loaded as 8 bytes stands at a multiple of them
  int64_t least = -1;
  for (int64_t i = 0, pitch = (width + step - 1) / step * step; i < 8; ++i, pitch += step) {
    const int64_t skew = window_stride ? 31 & (2 * conv.lanes_w - lines * pitch) : 0;
    const int64_t plane = (conv.plane_h * pitch + turns * skew + 3) / 4 * 4;
    if (least < 0 || plane < least) {
      least = plane;
      conv.pitch = static_cast<int>(pitch), conv.skew = static_cast<int>(skew), conv.plane = static_cast<int>(plane);
    }
  }
}

// Fill what follows from the header, the kernel's size and the block's choice; RecordConv's own sizes are set.
inline GridLaunch plan_record_launch(RecordConv& conv, const int64_t* header) {
  const int kernel_h = header[RECORD_KERNEL_H], kernel_w = header[RECORD_KERNEL_W];
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
  const bool is_choice = (conv.tile_h == 4 || (conv.tile_h == 6 && has_tall_kernel)) && conv.lanes > 0 &&
      conv.lanes_w > 0 && conv.block_row_groups > 0 && conv.slices > 0 && (conv.buffers == 1 || conv.buffers == 2) &&
      conv.chunk_channels % (window.taps == WINDOW_CHANNELS ? WINDOW_CHANNELS : 1) == 0;
  conv.pixel_warps = is_choice ? ceil_div(conv.lanes, 32) : 1;
  const int64_t warps = int64_t{conv.pixel_warps} * conv.block_row_groups * conv.slices;
  if (!is_choice || warps > max_record_warps(conv.tile_h, window.taps, window.stride)) {
    return {0, 0, 0, 0, "the launch is none that the kernel knows"};
  }
  const int64_t reach_h = int64_t{conv.dilation_h} * (kernel_h - 1),
                reach_w = int64_t{conv.dilation_w} * (kernel_w - 1);
  const int64_t lines = ceil_div(conv.p, conv.tile_h);
  const int64_t plane_h =
      (touched_lines(lines, conv.lanes, conv.lanes_w) * conv.tile_h - 1) * conv.stride_h + reach_h + 1;
  const int64_t plane_w = (int64_t{conv.lanes_w} * TILE_W - 1) * conv.stride_w + reach_w + 1;
  if (plane_h > (1 << 15) || plane_w > (1 << 15) || plane_h * (plane_w + 32) >= (1 << 16)) {
    return {0, 0, 0, 0, "the block's tile does not fit shared memory"};
  }
  conv.plane_h = static_cast<int>(plane_h);
  lay_out_tile(conv, plane_w, window.stride);
  const int64_t plane = conv.plane;
  const int part = window.stride ? conv.pitch / window.stride : 0;
  const int steps[2][4] = {
      {conv.stride_h * conv.pitch, conv.stride_w, conv.dilation_h * conv.pitch, conv.dilation_w},
      {part, part + conv.skew, 0, 0}};
  for (int i = 0; i < 4; ++i) {
    conv.steps[i] = 4 * steps[window.stride > 0][i];
  }
  conv.plane_bytes = 4 * conv.plane;
  const int64_t tile = 4 * plane * conv.chunk_channels;
  const int64_t records = int64_t{8} * conv.block_row_groups * conv.max_records;
  const int64_t channels = int64_t{RECORD_ROW_BYTES} * RECORD_ROWS * conv.block_row_groups;
  const int64_t starts = ceil_div(conv.block_row_groups * conv.num_chunks * int64_t{conv.slices} + 1, 4) * 16;
  const int64_t staged = conv.buffers * (tile + records);
  // Sums are added and stored through the tiles' memory, as many rows at once as fit there.
  const int64_t row_sums = 32 * warps * 4 * conv.tile_h * TILE_W;
  conv.rows_at_once = RECORD_ROWS;
  while (conv.rows_at_once > 1 && conv.rows_at_once * row_sums > staged) {
    conv.rows_at_once /= 2;
  }
  conv.row_parts = std::min(conv.slices, conv.rows_at_once);
  conv.line_parts = conv.slices / conv.row_parts;
  if (!conv.residual && conv.activation == AFTER_RESIDUAL) {
    conv.activation = BEFORE_RESIDUAL;  // the same, and the kernel's only one without a residual
  }
  const int64_t shared_bytes = channels + starts + std::max(staged, row_sums);
  if (shared_bytes > (int64_t{1} << 30)) {
    return {0, 0, 0, shared_bytes, "the block's tile does not fit shared memory"};
  }
  conv.tiles_at = static_cast<int>(channels + starts);
  const int64_t last = (conv.h - 1) * std::abs(conv.x_stride_h) + (conv.w - 1) * std::abs(conv.x_stride_w);
  const int64_t last_y = (conv.p - 1) * conv.y_stride_p + (conv.q - 1) * conv.y_stride_q;
  if (std::max(last, last_y) >= (int64_t{1} << 31)) {
    return {0, 0, 0, shared_bytes, "a channel of an image spans 2^31 elements or more"};
  }
  conv.x_step_h = static_cast<int>(conv.x_stride_h), conv.x_step_w = static_cast<int>(conv.x_stride_w);
  conv.y_step_p = static_cast<int>(conv.y_stride_p), conv.y_step_q = static_cast<int>(conv.y_stride_q);
  conv.by_places = Divisor::by(plane_h * conv.pitch), conv.by_pitch = Divisor::by(conv.pitch);
  conv.by_pixel_warps = Divisor::by(conv.pixel_warps), conv.by_row_groups = Divisor::by(conv.block_row_groups);
  conv.by_lanes_w = Divisor::by(conv.lanes_w);
  conv.copy_parts = static_cast<int>(std::max(int64_t{1}, 32 * warps / (plane_h * conv.pitch)));
  conv.by_copy_parts = Divisor::by(conv.copy_parts);  // a chunk of 2^15 channels would be past all shared memory
  conv.copy_to = conv.copy_parts * conv.plane;
  conv.copy_from = conv.copy_parts * conv.x_stride_c;
  conv.bands = static_cast<int>(ceil_div(conv.q, int64_t{conv.lanes_w} * TILE_W));
  conv.runs = static_cast<int>(ceil_div(lines * conv.lanes_w, conv.lanes));
  conv.row_blocks = static_cast<int>(ceil_div(conv.num_row_groups, conv.block_row_groups));
  conv.band_lanes = static_cast<int>(lines * conv.lanes_w);
  const int64_t tiles = int64_t{conv.n} * conv.runs * conv.bands, rows = int64_t{conv.groups} * conv.row_blocks;
  if (tiles >= (int64_t{1} << 31) || rows > 65535) {
    return {0, 0, 0, shared_bytes, "the grid has more blocks than a GPU takes"};
  }
  return {
      static_cast<unsigned>(tiles), static_cast<unsigned>(rows), static_cast<unsigned>(32 * warps), shared_bytes, ""};
}

// Run as `launch_condensed_conv2d` of condensed/launch.h does; the kernel is for float32 only.
std::string launch_record_conv2d(
    const RecordConv& conv, const GridLaunch& launch, const int64_t* header, bool is_bfloat16, void* stream);

}  // namespace prunekit
