// Masked convolution in float32 on CUDA cores, on a record filter (record_filter.h).
//
//   y[n, k, p, q] = residual + activation(bias[k] + Σ_kept weight[k, c, r, s] · x[n, c, p·stride + r·dilation − padding, …])
//   or, where the activation comes last, activation(residual + bias[k] + Σ …)
//
// A lane keeps ROWS output channels × TILE_H × TILE_W pixels in registers. A warp reads its row group's records, all
// lanes the same one: LOAD_WINDOW brings the inputs around the lane's pixels from shared memory into registers, and a
// slot multiplies one weight with the pixels' inputs, all of them registers that the slot's number fixes: one jump into
// a table of ROWS · taps cases. So an input that was loaded once serves every kept weight of ROWS output channels and of
// all its taps, which is what lets the kernel pass the one load a cycle that shared memory gives.
//
// A block stages the haloed tile of one chunk of input channels and its row groups' records, two buffers in turn. Its
// warps share the tile: pixel warps × row groups × slices, a slice being a share of each run of records; slices are added
// at the end in a fixed order. No atomics: the same bits on every run.
#pragma once

#include "device.cuh"
#include "epilogue.cuh"
#include "record_launch.h"

namespace prunekit {

// The registers that one LOAD_WINDOW fills: CHANNELS planes around the lane's pixels. STRIDE 0 is any stride, for windows
// of one tap.
template <int TILE_H, int R, int S, int STRIDE, int CHANNELS>
struct Window {
  static constexpr int TAPS = R * S * CHANNELS;
  static constexpr int STEP = STRIDE ? STRIDE : 1;
  static constexpr int H = STRIDE ? (TILE_H - 1) * STEP + R : TILE_H;
  static constexpr int W = STRIDE ? (TILE_W - 1) * STEP + S : TILE_W;
  float value[CHANNELS][H][W];

  // `from`: the lane's first input in the tile.
  __device__ __forceinline__ void load(const float* from, const RecordConv& conv, int argument) {
    const int channel = argument >> 16, tap_h = argument >> 8 & 255, tap_w = argument & 255;
    const float* at = from + channel * conv.plane;
    if constexpr (STRIDE == 0) {
      at += tap_h * conv.dilation_h * conv.pitch + tap_w * conv.dilation_w;
    }
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
#pragma unroll
      for (int i = 0; i < H; ++i) {
        const float* line = at + c * conv.plane + (STRIDE ? i : i * conv.stride_h) * conv.pitch;
        if constexpr (STRIDE == 0) {
#pragma unroll
          for (int j = 0; j < W; ++j) {
            value[c][i][j] = line[j * conv.stride_w];
          }
        } else {
          load_line(value[c][i], line);
        }
      }
    }
  }

  // A lane's first input is aligned to 16 bytes: TILE_W · stride and the pitch are multiples of 4.
  static __device__ __forceinline__ void load_line(float (&to)[W], const float* line) {
#pragma unroll
    for (int j = 0; j + 4 <= W; j += 4) {
      const float4 four = *reinterpret_cast<const float4*>(line + j);
      to[j] = four.x, to[j + 1] = four.y, to[j + 2] = four.z, to[j + 3] = four.w;
    }
    if constexpr (W % 4 >= 2) {
      const float2 two = *reinterpret_cast<const float2*>(line + W / 4 * 4);
      to[W / 4 * 4] = two.x, to[W / 4 * 4 + 1] = two.y;
    }
    if constexpr (W % 2 == 1) {
      to[W - 1] = line[W - 1];
    }
  }

  // Add weight · input of tap TAP to the tile's sums.
  template <int TAP>
  __device__ __forceinline__ void multiply_add(float (&sum)[TILE_H * TILE_W], float weight) const {
    constexpr int TAP_H = TAP / S % R, TAP_W = TAP % S, CHANNEL = TAP / (R * S);
#pragma unroll
    for (int i = 0; i < TILE_H; ++i) {
#pragma unroll
      for (int j = 0; j < TILE_W; ++j) {
        sum[i * TILE_W + j] += weight * value[CHANNEL][i * STEP + TAP_H][j * STEP + TAP_W];
      }
    }
  }
};

#define PRUNEKIT_SLOT(i) \
  case i: \
    window.template multiply_add<(i) % Window::TAPS>(sum[(i) / Window::TAPS], weight); \
    break;
#define PRUNEKIT_SLOTS_4(i) PRUNEKIT_SLOT(i) PRUNEKIT_SLOT(i + 1) PRUNEKIT_SLOT(i + 2) PRUNEKIT_SLOT(i + 3)
#define PRUNEKIT_SLOTS_8(i) PRUNEKIT_SLOTS_4(i) PRUNEKIT_SLOTS_4(i + 4)

// Read one segment's records up to its END_SEGMENT. The switch is dense, so that it becomes one jump through a table.
template <typename Window, int ROWS, int TILE>
__device__ __forceinline__ void run_segment(
    const RecordConv& conv, const int2* segment, const float* from, float (&sum)[ROWS][TILE]) {
  constexpr int SLOTS = ROWS * Window::TAPS;
  static_assert(SLOTS == 8 || SLOTS == 16 || SLOTS == 72, "the cases below are for these");
  Window window;
  device::SharedStream stream(segment);
  while (true) {
    const int2 record = stream.next();
    const float weight = __int_as_float(record.y);
    if constexpr (SLOTS == 8) {
      switch (record.x) {
        PRUNEKIT_SLOTS_8(0)
        case 8:
          window.load(from, conv, record.y);
          break;
        case 9:
          return;
      }
    } else if constexpr (SLOTS == 16) {
      switch (record.x) {
        PRUNEKIT_SLOTS_8(0)
        PRUNEKIT_SLOTS_8(8)
        case 16:
          window.load(from, conv, record.y);
          break;
        case 17:
          return;
      }
    } else {
      switch (record.x) {
        PRUNEKIT_SLOTS_8(0)
        PRUNEKIT_SLOTS_8(8)
        PRUNEKIT_SLOTS_8(16)
        PRUNEKIT_SLOTS_8(24)
        PRUNEKIT_SLOTS_8(32)
        PRUNEKIT_SLOTS_8(40)
        PRUNEKIT_SLOTS_8(48)
        PRUNEKIT_SLOTS_8(56)
        PRUNEKIT_SLOTS_8(64)
        case 72:
          window.load(from, conv, record.y);
          break;
        case 73:
          return;
      }
    }
  }
}

#undef PRUNEKIT_SLOT
#undef PRUNEKIT_SLOTS_4
#undef PRUNEKIT_SLOTS_8

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

constexpr int COPY_BATCH = 8;

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

// A row group's first record of a chunk.
__device__ __forceinline__ const int32_t* run_starts(
    const RecordConv& conv, const RecordBlock& block, int row_group, int chunk) {
  const int run = (block.group * conv.num_row_groups + block.first_row_group + row_group) * conv.num_chunks + chunk;
  return conv.starts + run * conv.slices;
}

// Copy the chunk's run of records for each of the block's row groups.
__device__ __forceinline__ void stage_records(
    const RecordConv& conv, const RecordBlock& block, int chunk, int2* records) {
  const int row_groups = min(conv.block_row_groups, conv.num_row_groups - block.first_row_group);
  for (int g = 0; g < row_groups; ++g) {
    const int32_t* starts = run_starts(conv, block, g, chunk);
    const int begin = starts[0], count = starts[conv.slices] - begin;
    for (int at = 2 * threadIdx.x; at < count; at += 2 * blockDim.x) {
      device::copy_async<16>(records + g * conv.max_records + at, conv.records + 2 * (begin + at), true);
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
  float* tiles = reinterpret_cast<float*>(shared);
  int2* records = reinterpret_cast<int2*>(tiles + conv.buffers * tile_floats);
  const int block_records = conv.block_row_groups * conv.max_records;
  const int lane_input = lane_h * TILE_H * conv.stride_h * conv.pitch + lane_w * TILE_W * conv.stride_w;

  float sum[ROWS][TILE_H * TILE_W] = {};
  const auto stage = [&](int chunk) {
    const int buffer = chunk % conv.buffers;
    stage_tile(conv, block, chunk, tiles + buffer * tile_floats);
    stage_records(conv, block, chunk, records + buffer * block_records);
    device::commit_copies();
  };
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
      const int32_t* starts = run_starts(conv, block, row_group, chunk);
      const int2* run = records + buffer * block_records + row_group * conv.max_records;
      run_segment<Window<TILE_H, R, S, STRIDE, CHANNELS>>(
          conv, run + starts[slice] - starts[0], tiles + buffer * tile_floats + lane_input, sum);
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
    tile_h == 3 ? visit(record_conv2d<RECORD_ROWS, 3, 3, 3, 1, 1>) : visit(record_conv2d<RECORD_ROWS, 2, 3, 3, 1, 1>);
  } else if (window.taps == 9) {
    visit(record_conv2d<RECORD_ROWS, 2, 3, 3, 2, 1>);
  } else if (window.taps == WINDOW_CHANNELS) {
    tile_h == 3 ? visit(record_conv2d<RECORD_ROWS, 3, 1, 1, 1, WINDOW_CHANNELS>)
                : visit(record_conv2d<RECORD_ROWS, 2, 1, 1, 1, WINDOW_CHANNELS>);
  } else {
    visit(record_conv2d<RECORD_ROWS, 2, 1, 1, 0, 1>);
  }
}

}  // namespace prunekit
