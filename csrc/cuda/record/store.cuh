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

// An output channel of a block: where its plane of the image begins in y, or -1, as a block's last row group may have
// fewer than RECORD_ROWS.
struct alignas(16) RecordRow {
  int64_t plane;
  float bias;
};
static_assert(sizeof(RecordRow) == RECORD_ROW_BYTES);

__device__ __forceinline__ void stage_rows(const RecordConv& conv, const RecordBlock& block, RecordRow* rows) {
  const int first = block.first_row_group * RECORD_ROWS;
  for (int at = threadIdx.x; at < RECORD_ROWS * conv.block_row_groups; at += blockDim.x) {
    RecordRow row = {-1, 0.0f};
    if (first + at < conv.rows_per_group) {
      const int k = __ldg(conv.rows + block.group * conv.rows_per_group + first + at);
      row.plane = block.image * conv.y_stride_n + k * conv.y_stride_k;
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

// Add, finish and store rows first … first + rows_at_once: a line of one row at a time, two pixels of it to a thread.
// LINES of them go on together, so that a thread waits once for all their loads.
template <int TILE_H, int LINES>
__device__ __forceinline__ void store_rows(
    const RecordConv& conv, const RecordRow* rows, const StoredPixel (&pixels)[2], int first, int slice, int column,
    int columns, const float* shared) {
  const int count = conv.rows_at_once * TILE_H, slice_step = TILE_H * TILE_W * columns;
#pragma unroll 1
  for (int begin = slice; begin < count; begin += LINES * conv.slices) {
    const float* from[LINES];
    int64_t to[LINES][2];  // places in y, or -1
    float value[LINES][2];
#pragma unroll
    for (int i = 0; i < LINES; ++i) {
      const int at = begin + i * conv.slices, here = min(at, count - 1), row = here / TILE_H, line = here % TILE_H;
      from[i] = shared + row * conv.slices * slice_step + line * TILE_W * columns + column;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const StoredPixel& pixel = pixels[half];
        const RecordRow channel = rows[pixel.row_group * RECORD_ROWS + first + row];
        const bool is_there = at < count && channel.plane >= 0 && line < pixel.lines;
        to[i][half] = is_there ? channel.plane + (pixel.offset + line * conv.y_step_p) : -1;
        value[i][half] = channel.bias;
      }
    }
#pragma unroll 1
    for (int other = 0; other < conv.slices; ++other) {
#pragma unroll
      for (int i = 0; i < LINES; ++i) {
        value[i][0] += from[i][0], value[i][1] += from[i][columns];
        from[i] += slice_step;
      }
    }
    float residual[LINES][2];
#pragma unroll
    for (int at = 0; at < 2 * LINES; ++at) {
      const int64_t place = to[at / 2][at % 2];
      residual[at / 2][at % 2] = conv.residual && place >= 0 ? __ldg(conv.residual + place) : -0.0f;  // changes nothing
    }
#pragma unroll
    for (int at = 0; at < 2 * LINES; ++at) {
      const float before = activate(conv, BEFORE_RESIDUAL, value[at / 2][at % 2]);
      if (to[at / 2][at % 2] >= 0) {
        conv.y[to[at / 2][at % 2]] = activate(conv, AFTER_RESIDUAL, before + residual[at / 2][at % 2]);
      }
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
#pragma unroll 1
  for (int first = 0; first < ROWS; first += conv.rows_at_once) {
    share_sums<ROWS, TILE_H>(conv, first, slice, column, columns, sum, shared);
    __syncthreads();
    store_rows<TILE_H, TILE_H / 2>(conv, rows, pixels, first, slice, column, columns, shared);
    __syncthreads();
  }
}

}  // namespace prunekit
