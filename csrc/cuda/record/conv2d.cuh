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
#include "record/launch.h"
#include "record/store.cuh"

#ifdef PRUNEKIT_EMULATED
#include "simt_record_programs.h"
#else
namespace prunekit {

// Read a segment's records up to its END_SEGMENT and add to the sums of ROWS channels × TILE_H · TILE_W pixels. `from` is
// the lane's first input in the tile. csrc/cuda/record/programs.py writes it, as PTX.
template <int ROWS, int TILE_H, int R, int S, int STRIDE, int CHANNELS>
__device__ void run_records(
    const RecordConv& conv, const int2* segment, const float* from, float (&sum)[ROWS][TILE_H * TILE_W]);

}  // namespace prunekit

#include "record_programs.cuh"
#endif

namespace prunekit {

__device__ __forceinline__ RecordBlock find_block(const RecordConv& conv, unsigned tile, unsigned rows) {
  const unsigned runs = tile / conv.bands, band = tile - runs * conv.bands;
  const unsigned image = runs / conv.runs, run = runs - image * conv.runs;
  const unsigned group = rows / conv.row_blocks, row_block = rows - group * conv.row_blocks;
  const int first = run * conv.lanes, first_line = first / conv.lanes_w;
  return {
      static_cast<int>(image),
      static_cast<int>(group),
      static_cast<int>(row_block) * conv.block_row_groups,
      first_line,
      first - first_line * conv.lanes_w,
      static_cast<int>(band) * conv.lanes_w * TILE_W,
      min(conv.lanes, conv.band_lanes - first)};
}

// What a thread works on in its block.
struct RecordLane {
  int row_group, slice, line, place;
  bool has_rows;
};

__device__ __forceinline__ RecordLane find_lane(const RecordConv& conv, const RecordBlock& block, unsigned thread) {
  const int warp = thread / 32, rest = conv.by_pixel_warps.of(warp), pixel_warp = warp - rest * conv.pixel_warps;
  const int slice = conv.by_row_groups.of(rest), row_group = rest - slice * conv.block_row_groups;
  const int pixel = pixel_warp * 32 + thread % 32;
  // Lanes without pixels read with the last that has some.
  const int tile = block.skipped + min(pixel, block.lanes - 1);
  const int line = conv.by_lanes_w.of(tile);
  return {row_group, slice, line, tile - line * conv.lanes_w, block.first_row_group + row_group < conv.num_row_groups};
}

constexpr int COPY_BATCH = 24, COPY_REST = 8;  // loads under way together; of what batches leave

// Copy a chunk's inputs of PLACES places at a time, all channels. Places outside the image stay the zeros that they are.
template <int TILE_H, int STRIDE, int PLACES>
__device__ __forceinline__ void stage_places(
    const RecordConv& conv, const RecordBlock& block, int first_channel, int channels, float* tile) {
  const unsigned parts = conv.copy_parts;
  const unsigned thread = device::opaque(threadIdx.x);  // found anew for each chunk: registers are for sums
  const unsigned part = parts > 1 ? conv.by_places.of(thread) : 0;
  const int top = device::opaque(block.first_line) * TILE_H * conv.stride_h - conv.padding_h;
  const int left = device::opaque(block.first_q) * conv.stride_w - conv.padding_w;
  const float* image = conv.x + block.image * conv.x_stride_n +
      (block.group * conv.group_channels + first_channel + static_cast<int>(part)) * conv.x_stride_c;
  if (part >= parts) {
    return;
  }
#pragma unroll 1
  for (unsigned first = thread - part * conv.by_places.divisor; first < conv.by_places.divisor;
       first += PLACES * blockDim.x) {
    device::Column columns[PLACES];
#pragma unroll
    for (int i = 0; i < PLACES; ++i) {
      const unsigned at = first + i * blockDim.x, line = conv.by_pitch.of(at), column = at - line * conv.pitch;
      const int y = top + line, x = left + column;
      const bool is_inside = y >= 0 && y < conv.h && x >= 0 && x < conv.w;
      unsigned to = at;
      if constexpr (STRIDE == 2) {
        to += column / 2 + column % 2 * (conv.pitch / 2) - column;
      }
      if constexpr (STRIDE > 0) {
        to += line / (TILE_H * STRIDE) * conv.skew;
      }
      columns[i] = {
          tile + part * conv.plane + to, image + (is_inside ? y * conv.x_step_h + x * conv.x_step_w : 0),
          is_inside && at < conv.by_places.divisor};
    }
    if (PLACES == 1 && !columns[0].is_there) {
      continue;
    }
    int count = conv.by_copy_parts.of(channels - part + parts - 1);
    constexpr int MOST = COPY_BATCH / PLACES;
#pragma unroll 1
    for (; count >= MOST; count -= MOST) {
      device::copy_columns_async<MOST>(columns, conv.copy_to, conv.copy_from);
    }
#pragma unroll 1
    for (; count >= COPY_REST; count -= COPY_REST) {
      device::copy_columns_async<COPY_REST>(columns, conv.copy_to, conv.copy_from);
    }
#pragma unroll 1
    for (; count > 0; --count) {
      device::copy_columns_async<1>(columns, conv.copy_to, conv.copy_from);
    }
  }
}

// Few channels leave room for two places in a batch.
template <int TILE_H, int STRIDE>
__device__ __forceinline__ void stage_tile(const RecordConv& conv, const RecordBlock& block, int chunk, float* tile) {
  const int first = chunk * conv.chunk_channels;
  const int channels = min(conv.chunk_channels, conv.group_channels - first);
  if (device::HAS_ASYNC_COPY || conv.copy_parts > 1 || conv.chunk_channels > COPY_BATCH / 2) {
    stage_places<TILE_H, STRIDE, 1>(conv, block, first, channels, tile);
  } else {
    stage_places<TILE_H, STRIDE, 2>(conv, block, first, channels, tile);
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

constexpr int RECORD_BATCH = 2;

// Copy a chunk: its tile, and its runs of records, which the warps of a row group share.
template <int TILE_H, int STRIDE>
__device__ __forceinline__ void stage_chunk(
    const RecordConv& conv, const RecordBlock& block, int chunk, const int32_t* starts, float* tile, int2* records) {
  const int thread = device::opaque(threadIdx.x);
  const int warp = thread / 32, part = conv.by_row_groups.of(warp), row_group = warp - part * conv.block_row_groups;
  const int stride = 64 * conv.pixel_warps * conv.slices;
  const bool has_rows = block.first_row_group + row_group < conv.num_row_groups;
  const int first = (row_group * conv.num_chunks + chunk) * conv.slices;
  const int begin = has_rows ? starts[first] : 0, count = has_rows ? starts[first + conv.slices] - begin : 0;
  int at = 2 * (part * 32 + thread % 32);
  int2* to = records + row_group * conv.max_records + at;
  const int32_t* from = conv.records + 2 * (begin + at);
  device::StridedCopy<RECORD_BATCH> copy;
  copy.begin(to, from, stride, count - at);
  stage_tile<TILE_H, STRIDE>(conv, block, chunk, tile);
  copy.finish(to, stride, count - at);
  for (at += stride * RECORD_BATCH; at < count; at += stride * RECORD_BATCH) {
    to += stride * RECORD_BATCH, from += 2 * stride * RECORD_BATCH;
    copy.begin(to, from, stride, count - at);
    copy.finish(to, stride, count - at);
  }
}

template <int ROWS, int TILE_H, int R, int S, int STRIDE, int CHANNELS>
__global__ void __launch_bounds__(32 * max_record_warps(TILE_H, R * S * CHANNELS, STRIDE))
    record_conv2d(const RecordConv conv) {
  PRUNEKIT_DYNAMIC_SHARED(shared);
  const RecordBlock block = find_block(conv, blockIdx.x, blockIdx.y);
  const RecordLane lane = find_lane(conv, block, threadIdx.x);
  const int tile_floats = conv.chunk_channels * conv.plane;
  RecordRow* rows = reinterpret_cast<RecordRow*>(shared);
  int32_t* starts = reinterpret_cast<int32_t*>(rows + RECORD_ROWS * conv.block_row_groups);
  float* tiles = reinterpret_cast<float*>(shared + conv.tiles_at);
  int2* records = reinterpret_cast<int2*>(tiles + conv.buffers * tile_floats);
  const int block_records = conv.block_row_groups * conv.max_records;
  const int lane_step = STRIDE ? TILE_W : TILE_W * conv.stride_w;
  const int lane_input = lane.line * (TILE_H * conv.stride_h * conv.pitch + conv.skew) + lane.place * lane_step;

  // Both in one register, or -1: with windows of stride 2 there is none left.
  const int share = device::opaque(lane.has_rows ? lane.slice << 16 | lane.row_group : -1);

  float sum[ROWS][TILE_H * TILE_W] = {};
  const auto stage = [&](int chunk) {
    const int buffer = chunk & (conv.buffers - 1);
    stage_chunk<TILE_H, STRIDE>(
        conv, block, chunk, starts, tiles + buffer * tile_floats, records + buffer * block_records);
    device::commit_copies();
  };
  stage_starts(conv, block, starts);
  stage_rows(conv, block, rows);
  for (int at = 4 * threadIdx.x; at < conv.buffers * tile_floats; at += 4 * blockDim.x) {
    *reinterpret_cast<float4*>(tiles + at) = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  }
  __syncthreads();
  // With two buffers the first turn only copies, so that copies stand in the code once: they are a third of it.
  for (int chunk = 1 - conv.buffers; chunk < conv.num_chunks; ++chunk) {
    const int buffer = chunk & (conv.buffers - 1), ahead = chunk + conv.buffers - 1;
    if (ahead < conv.num_chunks) {
      stage(ahead);
    }
    if (chunk < 0) {
      continue;
    }
    if (ahead > chunk && ahead < conv.num_chunks) {
      device::wait_for_copies<1>();
    } else {
      device::wait_for_copies<0>();
    }
    __syncthreads();
    if (share >= 0) {
      const int slice = share >> 16, row_group = share & 0xffff;
      const int first = (row_group * conv.num_chunks + chunk) * conv.slices;
      const int2* run = records + buffer * block_records + row_group * conv.max_records;
      run_records<ROWS, TILE_H, R, S, STRIDE, CHANNELS>(
          conv, run + starts[first + slice] - starts[first], tiles + buffer * tile_floats + lane_input, sum);
    }
    __syncthreads();
  }
  // Found anew: what is not kept in registers until here leaves them to the copies.
  const RecordBlock here = find_block(conv, device::opaque(blockIdx.x), device::opaque(blockIdx.y));
  const int slice = find_lane(conv, here, device::opaque(threadIdx.x)).slice;
  store_sums<ROWS, TILE_H>(conv, here, rows, slice, sum, tiles);
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
