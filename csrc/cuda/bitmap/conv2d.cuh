// Masked convolution in float16 and bfloat16 on tensor cores, on a bitmap filter (bitmap_filter.h): loaded sparse,
// multiplied dense, for layers of many weights and few pixels.
//
//   y[n, k, p, q] = residual + activation(bias[k] + Σ_kept weight[k, c, r, s] · x[n, c, p·stride + r·dilation − padding, …])
//   or, where the activation comes last, activation(residual + bias[k] + Σ …)
//
// Inputs are staged, gathered and multiplied as the condensed kernel does it (condensed_conv2d.cuh). Of the filter only
// bitmaps and kept weights are read and staged; each warp decodes a step into the registers of mma while it multiplies
// the step before.
//
// `cuts` blocks share the chunks of channels of one output, so that few pixels keep all multiprocessors busy. Each writes
// its float32 sums to the workspace, and add_cuts, launched behind, adds them in the order of cuts and does what follows
// a sum. No atomics: the same bits on every run.
//
// A dropped weight contributes nothing: where a chunk of a block's inputs holds inf or nan, its kept weights are
// multiplied one by one. Kept weights are finite.
#pragma once

#include "bitmap/stage.cuh"
#include "condensed/conv2d.cuh"

namespace prunekit {

__device__ __forceinline__ int4 pack_weights(const uint32_t (&weight)[8]) {
  return {
      static_cast<int>(weight[0] | weight[1] << 16), static_cast<int>(weight[2] | weight[3] << 16),
      static_cast<int>(weight[4] | weight[5] << 16), static_cast<int>(weight[6] | weight[7] << 16)};
}

// One slice of a run's steps.
template <bool IS_BFLOAT16, int UNITS>
__device__ __forceinline__ void run_bitmap_steps(
    const BitmapConv& conv, const int4* inputs, const int4* records, const int4* values, int first, int count,
    const int (&offset)[UNITS / 2], float (&sum)[UNITS][4]) {
  const int lane = threadIdx.x % 32;
  const device::SharedAddress base = device::shared_address(inputs);
  if (first >= count) {
    return;
  }
  const BitmapStep begin(records, values, first);
  uint32_t decoded[8];
  begin.decode(lane, decoded);
  int4 weights = pack_weights(decoded);
  device::SharedAddress tap = base + begin.place_of(conv, lane % STEP_COLUMNS);
#pragma unroll 1
  for (int step = first; step < count; step += conv.slices) {
    const device::SharedAddress here = tap;
    // The last step is decoded once more.
    const BitmapStep next(records, values, min(step + conv.slices, count - 1));
    next.decode(lane, decoded);
    tap = base + next.place_of(conv, lane % STEP_COLUMNS);
#pragma unroll
    for (int pair = 0; pair < UNITS / 2; ++pair) {
      uint32_t input[4];
      device::load_matrices_transposed(input, here + offset[pair]);
      device::multiply_add<IS_BFLOAT16>(sum[2 * pair], weights, input[0], input[1]);
      device::multiply_add<IS_BFLOAT16>(sum[2 * pair + 1], weights, input[2], input[3]);
    }
    weights = pack_weights(decoded);
  }
}

// The same, weight by weight and kept ones only: for inputs with inf and nan.
template <bool IS_BFLOAT16, int UNITS>
__device__ __forceinline__ void run_bitmap_steps_one_by_one(
    const BitmapConv& conv, const int4* inputs, const int4* records, const int4* values, int first, int count,
    const UnitPlace& first_place, float (&sum)[UNITS][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int step = first; step < count; step += conv.slices) {
    const BitmapStep here(records, values, step);
    const uint32_t bitmap = here.words[lane / 4];
#pragma unroll 1
    for (int column = 0; column < STEP_COLUMNS; ++column) {
      const unsigned char* tap = reinterpret_cast<const unsigned char*>(inputs) + here.place_of(conv, column);
      // The bit of this lane's first row in the column; that of its second comes two later.
      const int bit = 8 * (column % 8 / 2) + column / 8 * 4 + column % 2;
      float weight[2];
      bool is_kept[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        is_kept[half] = bitmap >> (bit + 2 * half) & 1;
        weight[half] = is_kept[half] ? device::widen<IS_BFLOAT16>(*here.find(lane / 4, bitmap, bit + 2 * half)) : 0.0f;
      }
      UnitPlace place = first_place;
#pragma unroll
      for (int unit = 0; unit < UNITS; ++unit, place.step(conv)) {
        const uint16_t* from = reinterpret_cast<const uint16_t*>(tap + place.offset(conv));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (is_kept[i / 2]) {
            sum[unit][i] += weight[i / 2] * device::widen<IS_BFLOAT16>(from[lane % 4 * 2 + i % 2]);
          }
        }
      }
    }
  }
}

// Where the sums of one unit of one cut lie.
__device__ __forceinline__ float4* find_sums(const BitmapConv& conv, int cut, int unit) {
  return reinterpret_cast<float4*>(conv.workspace) + (int64_t{cut} * conv.num_units + unit) * 32 + threadIdx.x % 32;
}

template <bool IS_BFLOAT16, int SHIFTS, int STRIDE, int UNITS>
__global__ void __launch_bounds__(32 * MAX_CONDENSED_WARPS, 2) bitmap_conv2d(const BitmapConv conv) {
  if constexpr (device::HAS_TENSOR_CORES<IS_BFLOAT16>) {
    PRUNEKIT_DYNAMIC_SHARED(shared);
    const int warp = threadIdx.x / 32;
    const int first_unit = warp % conv.pixel_warps * UNITS;
    const int row_group = warp / conv.pixel_warps % conv.block_row_groups;
    const int slice = warp / conv.pixel_warps / conv.block_row_groups;
    const int cut = blockIdx.x / conv.num_tiles, tile = blockIdx.x % conv.num_tiles;
    const CondensedBlock block = find_block(conv, tile, blockIdx.y);
    const InputShare share = InputShare::of(conv);
    const bool has_rows = block.first_row_group + row_group < conv.num_row_groups;
    // Lanes 16 and up name the rows of each pair's second unit.
    UnitPlace place = UnitPlace::of(conv, first_unit + threadIdx.x % 32 / 16);
    int offset[UNITS / 2];
#pragma unroll
    for (int pair = 0; pair < UNITS / 2; ++pair, place.step(conv), place.step(conv)) {
      offset[pair] = place.offset(conv);
    }

    float sum[1][UNITS][4] = {};
    const int first_chunk = static_cast<int>(int64_t{cut} * conv.num_chunks / conv.cuts);
    const int last_chunk = static_cast<int>(int64_t{cut + 1} * conv.num_chunks / conv.cuts);
    const auto stage = [&](int chunk) {
      const BitmapChunk to = find_chunk(conv, shared, chunk % conv.buffers);
      stage_bitmaps(conv, block, chunk, to);
      device::commit_copies();
      return stage_inputs<IS_BFLOAT16, SHIFTS, STRIDE>(conv, block, share, chunk, to.inputs);
    };
    bool has_special = conv.buffers == 2 && stage(first_chunk);
    for (int chunk = first_chunk; chunk < last_chunk; ++chunk) {
      const int ahead = chunk + conv.buffers - 1;
      const bool is_staged = ahead < last_chunk;
      const bool has_special_ahead = is_staged && stage(ahead);
      if (is_staged && ahead > chunk) {
        device::wait_for_copies<1>();
      } else {
        device::wait_for_copies<0>();
      }
      const bool is_special = __syncthreads_or(ahead > chunk ? has_special : has_special_ahead);
      if (has_rows) {
        const BitmapChunk here = find_chunk(conv, shared, chunk % conv.buffers);
        const int4* records = here.records + row_group * conv.longest * RECORD_VECTORS;
        const int4* values = here.values + row_group * conv.longest_aligned;
        const int count = BitmapRun::of(conv, block, row_group, chunk).steps;
        if (is_special) {
          run_bitmap_steps_one_by_one<IS_BFLOAT16>(
              conv, here.inputs, records, values, slice, count, UnitPlace::of(conv, device::opaque(first_unit)),
              sum[0]);
        } else {
          run_bitmap_steps<IS_BFLOAT16>(conv, here.inputs, records, values, slice, count, offset, sum[0]);
        }
      }
      __syncthreads();
      has_special = has_special_ahead;
    }
    const int column = row_group * conv.pixel_warps + warp % conv.pixel_warps;  // of the warps of a slice
    if (conv.slices > 1) {
      add_slices(conv, slice, threadIdx.x % 32 + 32 * column, reinterpret_cast<float*>(shared), sum);
    }
    if (slice == 0 && has_rows) {
      if (conv.cuts == 1) {
        const int group = block.group * conv.num_row_groups + block.first_row_group + row_group;
        store<IS_BFLOAT16>(conv, block, group, UnitPlace::of(conv, device::opaque(first_unit)), sum[0]);
        return;
      }
      const int columns = conv.pixel_warps * conv.block_row_groups;
      const int unit = ((tile * gridDim.y + blockIdx.y) * columns + column) * UNITS;
      float4* to = find_sums(conv, cut, unit);
#pragma unroll
      for (int i = 0; i < UNITS; ++i) {
        to[32 * i] = {sum[0][i][0], sum[0][i][1], sum[0][i][2], sum[0][i][3]};
      }
    }
  }
}

// Adds the cuts of the workspace, a unit a warp.
template <bool IS_BFLOAT16>
__global__ void __launch_bounds__(CUT_THREADS) add_cuts(const BitmapConv conv) {
  const int unit = blockIdx.x * (CUT_THREADS / 32) + threadIdx.x / 32;
  if (unit >= conv.num_units) {
    return;
  }
  // The number that bitmap_conv2d gave it, taken apart.
  const int pixel_units = conv.warp_units * conv.pixel_warps;
  const int unit_in_tile = unit % pixel_units, row_group = unit / pixel_units % conv.block_row_groups;
  const int blocks = unit / pixel_units / conv.block_row_groups;
  const int rows_of_blocks = conv.num_units / (pixel_units * conv.block_row_groups * conv.num_tiles);
  const CondensedBlock block = find_block(conv, blocks / rows_of_blocks, blocks % rows_of_blocks);
  if (block.first_row_group + row_group >= conv.num_row_groups) {
    return;
  }
  float sum[1][4] = {};
#pragma unroll 4
  for (int cut = 0; cut < conv.cuts; ++cut) {
    const float4 part = *find_sums(conv, cut, unit);
    sum[0][0] += part.x, sum[0][1] += part.y, sum[0][2] += part.z, sum[0][3] += part.w;
  }
  const int group = block.group * conv.num_row_groups + block.first_row_group + row_group;
  store<IS_BFLOAT16>(conv, block, group, UnitPlace::of(conv, unit_in_tile), sum);
}

// Call visit(kernel, kernel that adds cuts) with the instantiations for this dtype, window and cut.
template <typename Visit>
void visit_bitmap_kernels(bool is_bfloat16, InputWindow window, int warp_units, const Visit& visit) {
  visit_window(is_bfloat16, window, [&](auto dtype, auto shifts, auto stride) {
    constexpr bool IS_BFLOAT16 = decltype(dtype)::value;
    constexpr int SHIFTS = decltype(shifts)::value, STRIDE = decltype(stride)::value;
    warp_units == 8 ? visit(bitmap_conv2d<IS_BFLOAT16, SHIFTS, STRIDE, 8>, add_cuts<IS_BFLOAT16>)
                    : visit(bitmap_conv2d<IS_BFLOAT16, SHIFTS, STRIDE, 14>, add_cuts<IS_BFLOAT16>);
  });
}

}  // namespace prunekit
