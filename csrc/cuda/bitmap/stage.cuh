// How a block of the bitmap kernel brings a chunk's steps into shared memory, and how a warp reads them there.
#pragma once

#include "bitmap/launch.h"
#include "condensed/stage.cuh"

namespace prunekit {

// One chunk in shared memory.
struct BitmapChunk {
  int4* inputs;   // [channels][kernel_w][plane] units
  int4* records;  // [row groups][longest][BITMAP_RECORD_WORDS / 4]
  int4* values;   // [row groups][longest_aligned]
};

constexpr int RECORD_VECTORS = BITMAP_RECORD_WORDS / 4;

__device__ __forceinline__ BitmapChunk find_chunk(const BitmapConv& conv, unsigned char* shared, int buffer) {
  const int num_inputs = conv.chunk_channels * conv.kernel_w * conv.plane;
  const int num_records = conv.block_row_groups * conv.longest * RECORD_VECTORS;
  const int num_values = conv.block_row_groups * conv.longest_aligned;
  int4* inputs = reinterpret_cast<int4*>(shared) + buffer * (num_inputs + num_records + num_values);
  return {inputs, inputs + num_inputs, inputs + num_inputs + num_records};
}

// A row group's run in one chunk.
struct BitmapRun {
  int first_step, steps, first_value, values;  // values in BITMAP_ALIGNMENTs

  static __device__ __forceinline__ BitmapRun
  of(const BitmapConv& conv, const CondensedBlock& block, int row_group, int chunk) {
    const int group = block.group * conv.num_row_groups + block.first_row_group + row_group;
    const int32_t* start = conv.starts + 2 * (int64_t{group} * conv.num_chunks + chunk);
    const int step = __ldg(start), value = __ldg(start + 1);
    return {step, __ldg(start + 2) - step, value, __ldg(start + 3) - value};
  }
};

// Copy the chunk's steps and their values for each of the block's row groups, as they are.
__device__ __forceinline__ void stage_bitmaps(
    const BitmapConv& conv, const CondensedBlock& block, int chunk, const BitmapChunk& to) {
  const int row_groups = min(conv.block_row_groups, conv.num_row_groups - block.first_row_group);
  const int4* records = reinterpret_cast<const int4*>(conv.records);
  const int4* values = reinterpret_cast<const int4*>(conv.values);
#pragma unroll 1
  for (int g = 0; g < row_groups; ++g) {
    const BitmapRun run = BitmapRun::of(conv, block, g, chunk);
    const int num_records = run.steps * RECORD_VECTORS;
#pragma unroll 1
    for (int at = threadIdx.x; at < num_records + run.values; at += blockDim.x) {
      const bool is_record = at < num_records;
      int4* place = is_record ? to.records + g * conv.longest * RECORD_VECTORS + at
                              : to.values + g * conv.longest_aligned + at - num_records;
      const int4* from = is_record ? records + int64_t{run.first_step} * RECORD_VECTORS + at
                                   : values + run.first_value + at - num_records;
      device::copy_async<16>(place, from, true);
    }
  }
}

// One step in shared memory, as csrc/cuda/bitmap/filter.h lays it out.
struct BitmapStep {
  const uint32_t* words;
  const uint16_t* values;  // of the run

  __device__ __forceinline__ BitmapStep(const int4* records, const int4* run_values, int step)
      : words(reinterpret_cast<const uint32_t*>(records + step * RECORD_VECTORS)),
        values(reinterpret_cast<const uint16_t*>(run_values)) {}

  __device__ __forceinline__ const uint16_t* halfwords() const { return reinterpret_cast<const uint16_t*>(words + 8); }

  // Where a column's inputs lie, in bytes from the chunk's inputs.
  __device__ __forceinline__ int place_of(const BitmapConv& conv, int column) const {
    const int code = halfwords()[column];
    return (code >> 4) * (16 * conv.plane) + (code & 15) * (16 * conv.dilation_h * conv.units_w);
  }

  // The first of the values that the bits from `bit` on of a word stand for.
  __device__ __forceinline__ const uint16_t* find(int word, uint32_t bitmap, int bit) const {
    return values + halfwords()[STEP_COLUMNS + word] + __popc(bitmap & ((uint32_t{1} << bit) - 1));
  }

  // A lane's eight weights, zero where dropped.
  __device__ __forceinline__ void decode(int lane, uint32_t (&weight)[8]) const {
    const uint32_t bitmap = words[lane / 4];
    const int first_bit = lane % 4 * 8;
    const uint16_t* next = find(lane / 4, bitmap, first_bit);
    const uint32_t kept = bitmap >> first_bit;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      weight[j] = 0;
      if (kept >> j & 1) {
        weight[j] = *next++;
      }
    }
  }
};

}  // namespace prunekit
