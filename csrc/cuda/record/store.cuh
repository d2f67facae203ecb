// The end of a block of record_conv2d: its slices' sums are added, finished and stored.
//
// All of it goes through shared memory, a few rows at a time. A lane's pixels are TILE_H lines of TILE_W; in shared memory
// a line of all lanes is one run of pixels, so neighboring threads store neighboring pixels, and whole sectors. Every
// thread adds as many pixels as any other, over all slices in their order: the same bits on every run, and no slice waits
// while another adds. The loops are not unrolled over rows or slices, which keeps the code inside the instruction caches.
#pragma once

#include "device.cuh"
#include "epilogue.cuh"
#include "record/launch.h"

namespace prunekit {

// What a block works on: `skipped` lanes of its first line of lanes belong to the block before.
struct RecordBlock {
  int image, group, first_row_group, first_line, skipped, first_q, lanes;
};

// An output channel of a block: its plane of the image in y, or null, as a block's last row group may have fewer than
// RECORD_ROWS.
struct alignas(16) RecordRow {
  float* y;
  float bias;
};
static_assert(sizeof(RecordRow) == RECORD_ROW_BYTES);

__device__ __forceinline__ void stage_rows(const RecordConv& conv, const RecordBlock& block, RecordRow* rows) {
  const int first = block.first_row_group * RECORD_ROWS;
  for (int at = threadIdx.x; at < RECORD_ROWS * conv.block_row_groups; at += blockDim.x) {
    RecordRow row = {nullptr, 0.0f};
    if (first + at < conv.rows_per_group) {
      const int k = __ldg(conv.rows + block.group * conv.rows_per_group + first + at);
      row.y = conv.y + (block.image * conv.y_stride_n + k * conv.y_stride_k);
      row.bias = conv.bias ? __ldg(conv.bias + k) : 0.0f;
    }
    rows[at] = row;
  }
}

// The pixels that a thread stores in each line of the lanes: one, in `lines` lines from `offset` on.
struct StoredPixel {
  int row_group, lines, offset;
};

// `pixel` counts those of one line of all the block's lanes, row group after row group.
template <int TILE_H>
__device__ __forceinline__ StoredPixel find_pixel(const RecordConv& conv, const RecordBlock& block, int pixel) {
  const int column = pixel / TILE_W, row_group = conv.by_pixel_warps.of(column / 32);
  const int lane = column - row_group * 32 * conv.pixel_warps, tile = block.skipped + min(lane, block.lanes - 1);
  const int line = conv.by_lanes_w.of(tile), p = (block.first_line + line) * TILE_H;
  const int q = block.first_q + (tile - line * conv.lanes_w) * TILE_W + pixel % TILE_W;
  const bool is_there = lane < block.lanes && q < conv.q;
  return {row_group, is_there ? min(TILE_H, conv.p - p) : 0, is_there ? p * conv.y_step_p + q * conv.y_step_q : 0};
}

// Put rows first … first + rows_at_once of a lane's sums where others read them: [row][slice][line of pixels][column].
template <int ROWS, int TILE_H>
__device__ __forceinline__ void share_sums(
    const RecordConv& conv, int first, int slice, int column, int columns, const float (&sum)[ROWS][TILE_H * TILE_W],
    float* shared) {
  const int row_step = conv.slices * TILE_H * columns;
  float2* to = reinterpret_cast<float2*>(shared) + slice * TILE_H * columns + column;
#pragma unroll
  for (int row = 0; row < ROWS; ++row) {
    if (row >= first && row < first + conv.rows_at_once) {
      float2* line = to;
#pragma unroll
      for (int i = 0; i < TILE_H; ++i, line += columns) {
        *line = float2{sum[row][TILE_W * i], sum[row][TILE_W * i + 1]};
      }
      to += row_step;
    }
  }
}

// What a slice stores of the rows that are in shared memory: rows and lines of pixels, beginning with these.
struct SliceShare {
  int row, line;
};

__device__ __forceinline__ SliceShare find_share(const RecordConv& conv, int slice) {
  const int line = slice / conv.row_parts;
  return {line < conv.line_parts ? slice - line * conv.row_parts : conv.rows_at_once, line};
}

// A row's pixels of a thread in LINES lines that go on together, so that it waits once for all their loads: the first is
// `line`, others follow line_parts apart, as far as there are any.
template <int LINES>
struct StoredLines {
  float* y[2];  // the channel's plane, for each of two pixels in a line
  int offset[2], lines[2];
  float value[LINES][2];

  __device__ __forceinline__ bool is_there(const RecordConv& conv, int line, int i, int half) const {
    return line + i * conv.line_parts < lines[half];
  }
  __device__ __forceinline__ int place(const RecordConv& conv, int line, int i, int half) const {
    return offset[half] + (line + i * conv.line_parts) * conv.y_step_p;
  }

  // Add what the slices have of it, on top of the bias. `from` is the row's first line.
  template <int TILE_H>
  __device__ __forceinline__ void add(
      const RecordConv& conv, int line, const float (&bias)[2], const float* from, int columns) {
    const float* at[LINES];
#pragma unroll
    for (int i = 0; i < LINES; ++i) {
      at[i] = from + min(line + i * conv.line_parts, TILE_H - 1) * TILE_W * columns;
      value[i][0] = bias[0], value[i][1] = bias[1];
    }
    int left = conv.slices;
#pragma unroll 1
    do {
#pragma unroll
      for (int i = 0; i < LINES; ++i) {
        value[i][0] += at[i][0], value[i][1] += at[i][columns];
        at[i] += TILE_H * TILE_W * columns;
      }
    } while (--left > 0);
  }

  // Activation, residual, activation.
  __device__ __forceinline__ void finish(const RecordConv& conv, int line) {
#pragma unroll
    for (int at = 0; at < 2 * LINES; ++at) {
      value[at / 2][at % 2] = activate(conv, BEFORE_RESIDUAL, value[at / 2][at % 2]);
    }
    if (conv.residual) {
      float residual[LINES][2];
#pragma unroll
      for (int at = 0; at < 2 * LINES; ++at) {
        const int i = at / 2, half = at % 2;
        const bool is_read = is_there(conv, line, i, half);
        residual[i][half] = is_read ? __ldg(conv.residual + (y[half] - conv.y) + place(conv, line, i, half)) : 0.0f;
      }
#pragma unroll
      for (int at = 0; at < 2 * LINES; ++at) {
        const float sum = value[at / 2][at % 2] + residual[at / 2][at % 2];
        value[at / 2][at % 2] = activate(conv, AFTER_RESIDUAL, sum);
      }
    }
  }

  __device__ __forceinline__ void store(const RecordConv& conv, int line) const {
#pragma unroll
    for (int at = 0; at < 2 * LINES; ++at) {
      const int i = at / 2, half = at % 2;
      if (is_there(conv, line, i, half)) {
        device::store_global(y[half] + place(conv, line, i, half), value[i][half]);
      }
    }
  }
};

// Add, finish and store a slice's share of rows first … first + rows_at_once.
template <int TILE_H>
__device__ __forceinline__ void store_rows(
    const RecordConv& conv, const RecordRow* rows, const StoredPixel (&pixels)[2], int first, SliceShare share,
    const float* shared, int columns) {
  constexpr int LINES = TILE_H / 2;
#pragma unroll 1
  for (int row = share.row; row < conv.rows_at_once; row += conv.row_parts) {
    StoredLines<LINES> stored;
    float bias[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const StoredPixel& pixel = pixels[half];
      const RecordRow channel = rows[pixel.row_group * RECORD_ROWS + first + row];
      stored.y[half] = channel.y, stored.offset[half] = pixel.offset, bias[half] = channel.bias;
      stored.lines[half] = channel.y ? pixel.lines : 0;
    }
    const float* from = shared + row * conv.slices * TILE_H * TILE_W * columns;
#pragma unroll 1
    for (int line = share.line; line < TILE_H; line += LINES * conv.line_parts) {
      stored.template add<TILE_H>(conv, line, bias, from, columns);
      stored.finish(conv, line);
      stored.store(conv, line);
    }
  }
}

// `shared` holds the sums of rows_at_once rows; a barrier has passed since others used it.
template <int ROWS, int TILE_H>
__device__ __forceinline__ void store_sums(
    const RecordConv& conv, const RecordBlock& block, const RecordRow* rows, int slice,
    const float (&sum)[ROWS][TILE_H * TILE_W], float* shared) {
  const int columns = 32 * conv.pixel_warps * conv.block_row_groups, column = threadIdx.x - slice * columns;
  const StoredPixel pixels[2] = {
      find_pixel<TILE_H>(conv, block, column), find_pixel<TILE_H>(conv, block, column + columns)};
  const SliceShare share = find_share(conv, slice);
#pragma unroll 1
  for (int first = 0; first < ROWS; first += conv.rows_at_once) {
    share_sums<ROWS, TILE_H>(conv, first, slice, column, columns, sum, shared);
    __syncthreads();
    store_rows<TILE_H>(conv, rows, pixels, first, share, shared + column, columns);
    __syncthreads();
  }
}

}  // namespace prunekit
