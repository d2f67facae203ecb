// Masked convolution in float32 on CUDA cores, on a record filter (record_filter.h).
//
//   y[n, k, p, q] = residual + activation(bias[k] + Σ_kept weight[k, c, r, s] · x[n, c, p·stride + r·dilation − padding, …])
//   or, where the activation comes last, activation(residual + bias[k] + Σ …)
//
// A lane keeps ROWS output channels × TILE_H × TILE_W pixels in registers. A warp reads its row group's records, all
// lanes the same one: LOAD_WINDOW brings the inputs around the lane's pixels from shared memory into registers, and a
// slot multiplies one weight with the pixels' inputs, all of them registers that the slot's number fixes: one jump into
// a table of ROWS · taps pieces of code (record_programs.py). So an input that was loaded once serves every kept weight
// of ROWS output channels and of all its taps, which is what lets the kernel pass the one load a cycle that shared memory
// gives.
//
// A block stages the haloed tile of one chunk of input channels and its row groups' records, two buffers in turn. Its
// warps share the tile: pixel warps × row groups × slices, a slice being a share of each run of records; slices are added
// at the end in a fixed order. No atomics: the same bits on every run.
#pragma once

#include "device.cuh"
#include "epilogue.cuh"
#include "record_launch.h"

#ifdef PRUNEKIT_EMULATED
#include "simt_record_programs.h"
#else
namespace prunekit {

// Read a segment's records up to its END_SEGMENT and add to the sums of ROWS channels × TILE_H · TILE_W pixels. `from` is
// the lane's first input in the tile. csrc/cuda/record_programs.py writes it, as PTX.
template <int ROWS, int TILE_H, int R, int S, int STRIDE, int CHANNELS>
__device__ void run_records(
    const RecordConv& conv, const int2* segment, const float* from, float (&sum)[ROWS][TILE_H * TILE_W]);

}  // namespace prunekit

#include "record_programs.cuh"
#endif

namespace prunekit {

// What a block works on.
struct RecordBlock {
  int image, group, first_row_group, first_p, first_q;
};

__device__ __forceinline__ RecordBlock find_block(const RecordConv& conv, int tile_h) {
  const int tiles_w = (conv.q + conv.lanes_w * TILE_W - 1) / (conv.lanes_w * TILE_W);
  const int tiles_h = (conv.p + conv.lanes_h * tile_h - 1) / (conv.lanes_h * tile_h);
  const int row_blocks = (conv.num_row_groups + conv.block_row_groups - 1) / conv.block_row_groups;
  const int tile = blockIdx.x, rows = blockIdx.y;
  return {tile / (tiles_w * tiles_h), rows / row_blocks, rows % row_blocks * conv.block_row_groups,
          tile / tiles_w % tiles_h * conv.lanes_h * tile_h, tile % tiles_w * conv.lanes_w * TILE_W};
}

constexpr int COPY_BATCH = 16;

// Copy the haloed tile of a chunk; outside the image it is zero.
__device__ __forceinline__ void stage_tile(const RecordConv& conv, const RecordBlock& block, int chunk, float* tile) {
  const int first = chunk * conv.chunk_channels;
  const int channels = min(conv.chunk_channels, conv.group_channels - first);
  const float* image =
      conv.x + block.image * conv.x_stride_n + (block.group * conv.group_channels + first) * conv.x_stride_c;
  const int top = block.first_p * conv.stride_h - conv.padding_h;
  const int left = block.first_q * conv.stride_w - conv.padding_w;
  for (int at = threadIdx.x; at < conv.plane; at += blockDim.x) {
    const int y = top + at / conv.pitch, x = left + at % conv.pitch;
    const bool is_inside = y >= 0 && y < conv.h && x >= 0 && x < conv.w;
    const float* from = is_inside ? image + y * conv.x_stride_h + x * conv.x_stride_w : image;
    for (int c = 0; c < channels; c += COPY_BATCH) {
      device::copy_column_async<COPY_BATCH>(
          tile + c * conv.plane + at, conv.plane, from + c * conv.x_stride_c, conv.x_stride_c,
          min(COPY_BATCH, channels - c), is_inside);
    }
  }
}

// Copy where the segments of the block's row groups begin, of all chunks; they stand one after the other.
__device__ __forceinline__ void stage_starts(const RecordConv& conv, const RecordBlock& block, int32_t* starts) {
  const int runs = conv.num_chunks * conv.slices;
  const int32_t* from = conv.starts + (block.group * conv.num_row_groups + block.first_row_group) * runs;
  const int row_groups = min(conv.block_row_groups, conv.num_row_groups - block.first_row_group);
  for (int at = threadIdx.x; at <= row_groups * runs; at += blockDim.x) {
    starts[at] = __ldg(from + at);
  }
}

constexpr int RECORD_BATCH = 4;

// Copy the chunk's runs of records; the block's warps share the runs of its row groups.
__device__ __forceinline__ void stage_records(
    const RecordConv& conv, const RecordBlock& block, int chunk, const int32_t* starts, int2* records) {
  const int warp = threadIdx.x / 32, row_group = warp % conv.block_row_groups;
  if (block.first_row_group + row_group < conv.num_row_groups) {
    const int part = warp / conv.block_row_groups, parts = conv.pixel_warps * conv.slices;
    const int first = (row_group * conv.num_chunks + chunk) * conv.slices;
    const int begin = starts[first], count = starts[first + conv.slices] - begin;
    for (int at = 2 * (part * 32 + threadIdx.x % 32); at < count; at += 64 * parts * RECORD_BATCH) {
      device::copy_strided_async<RECORD_BATCH>(
          records + row_group * conv.max_records + at, conv.records + 2 * (begin + at), 64 * parts, count - at);
    }
  }
}

// Add the slices' sums into slice 0's, one row at a time through shared memory, in the order of slices.
template <int ROWS, int TILE>
__device__ __forceinline__ void add_slices(const RecordConv& conv, int slice, int column, float* shared,
                                           float (&sum)[ROWS][TILE]) {
  const int columns = 32 * conv.pixel_warps * conv.block_row_groups;
#pragma unroll
  for (int row = 0; row < ROWS; ++row) {
    __syncthreads();
    if (slice > 0) {
#pragma unroll
      for (int i = 0; i < TILE; ++i) {
        shared[((slice - 1) * TILE + i) * columns + column] = sum[row][i];
      }
    }
    __syncthreads();
    if (slice == 0) {
      for (int other = 1; other < conv.slices; ++other) {
#pragma unroll
        for (int i = 0; i < TILE; ++i) {
          sum[row][i] += shared[((other - 1) * TILE + i) * columns + column];
        }
      }
    }
  }
}

// Bias, activation, residual, or these two the other way round; then the pixels that exist are stored.
template <int ROWS, int TILE>
__device__ __forceinline__ void store(
    const RecordConv& conv, const RecordBlock& block, int row_group, int first_p, int first_q,
    const float (&sum)[ROWS][TILE]) {
  const int first_row = row_group * ROWS;
#pragma unroll
  for (int row = 0; row < ROWS; ++row) {
    if (first_row + row >= conv.rows_per_group) {
      return;
    }
    const int k = __ldg(conv.rows + block.group * conv.rows_per_group + first_row + row);
    const float bias = conv.bias ? __ldg(conv.bias + k) : 0.0f;
    const int64_t image = block.image * conv.y_stride_n + k * conv.y_stride_k;
#pragma unroll
    for (int i = 0; i < TILE; ++i) {
      const int p = first_p + i / TILE_W, q = first_q + i % TILE_W;
      if (p < conv.p && q < conv.q) {
        const int64_t at = image + p * conv.y_stride_p + q * conv.y_stride_q;
        const float value = activate(conv, BEFORE_RESIDUAL, sum[row][i] + bias);
        conv.y[at] = activate(conv, AFTER_RESIDUAL, conv.residual ? value + __ldg(conv.residual + at) : value);
      }
    }
  }
}

template <int ROWS, int TILE_H, int R, int S, int STRIDE, int CHANNELS>
__global__ void __launch_bounds__(32 * max_record_warps(TILE_H, R * S * CHANNELS, STRIDE))
    record_conv2d(const RecordConv conv) {
  PRUNEKIT_DYNAMIC_SHARED(shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int pixel = warp % conv.pixel_warps * 32 + lane;
  const int row_group = warp / conv.pixel_warps % conv.block_row_groups;
  const int slice = warp / conv.pixel_warps / conv.block_row_groups;
  const bool has_pixels = pixel < conv.lanes_h * conv.lanes_w;
  const int lane_h = has_pixels ? pixel / conv.lanes_w : 0, lane_w = has_pixels ? pixel % conv.lanes_w : 0;
  const RecordBlock block = find_block(conv, TILE_H);
  const bool has_rows = block.first_row_group + row_group < conv.num_row_groups;

  const int tile_floats = conv.chunk_channels * conv.plane;
  int32_t* starts = reinterpret_cast<int32_t*>(shared);
  float* tiles = reinterpret_cast<float*>(shared + conv.starts_bytes);
  int2* records = reinterpret_cast<int2*>(tiles + conv.buffers * tile_floats);
  const int block_records = conv.block_row_groups * conv.max_records;
  const int lane_input = lane_h * TILE_H * conv.stride_h * conv.pitch + lane_w * TILE_W * conv.stride_w;

  float sum[ROWS][TILE_H * TILE_W] = {};
  const auto stage = [&](int chunk) {
    const int buffer = chunk % conv.buffers;
    stage_tile(conv, block, chunk, tiles + buffer * tile_floats);
    stage_records(conv, block, chunk, starts, records + buffer * block_records);
    device::commit_copies();
  };
  stage_starts(conv, block, starts);
  __syncthreads();
  if (conv.buffers == 2) {
    stage(0);
  }
  for (int chunk = 0; chunk < conv.num_chunks; ++chunk) {
    const int buffer = chunk % conv.buffers, ahead = chunk + conv.buffers - 1;
    if (ahead < conv.num_chunks) {
      stage(ahead);
    }
    if (ahead > chunk && ahead < conv.num_chunks) {
      device::wait_for_copies<1>();
    } else {
      device::wait_for_copies<0>();
    }
    __syncthreads();
    if (has_rows) {
      const int first = (row_group * conv.num_chunks + chunk) * conv.slices;
      const int2* run = records + buffer * block_records + row_group * conv.max_records;
      run_records<ROWS, TILE_H, R, S, STRIDE, CHANNELS>(
          conv, run + starts[first + slice] - starts[first], tiles + buffer * tile_floats + lane_input, sum);
    }
    __syncthreads();
  }
  if (conv.slices > 1) {
    add_slices(conv, slice, (row_group * conv.pixel_warps + warp % conv.pixel_warps) * 32 + lane, tiles, sum);
  }
  if (slice == 0 && has_pixels && has_rows) {
    store(conv, block, block.first_row_group + row_group, block.first_p + lane_h * TILE_H,
          block.first_q + lane_w * TILE_W, sum);
  }
}

// Call visit(kernel) with the instantiation for this window and tile.
template <typename Visit>
void visit_record_kernel(RecordWindow window, int tile_h, const Visit& visit) {
  if (window.taps == 9 && window.stride == 1) {
    tile_h == 6 ? visit(record_conv2d<RECORD_ROWS, 6, 3, 3, 1, 1>) : visit(record_conv2d<RECORD_ROWS, 4, 3, 3, 1, 1>);
  } else if (window.taps == 9) {
    visit(record_conv2d<RECORD_ROWS, 4, 3, 3, 2, 1>);
  } else if (window.taps == WINDOW_CHANNELS) {
    tile_h == 6 ? visit(record_conv2d<RECORD_ROWS, 6, 1, 1, 1, WINDOW_CHANNELS>)
                : visit(record_conv2d<RECORD_ROWS, 4, 1, 1, 1, WINDOW_CHANNELS>);
  } else {
    visit(record_conv2d<RECORD_ROWS, 4, 1, 1, 0, 1>);
  }
}

}  // namespace prunekit
