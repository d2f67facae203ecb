// How a block of the tensor-core kernel brings a chunk's inputs and steps into shared memory.
#pragma once

#include "condensed/launch.h"
#include "device.cuh"

namespace prunekit {

// What a block works on.
struct CondensedBlock {
  int image, group, first_row_group, first_p, first_q;
};

__device__ __forceinline__ CondensedBlock find_block(const CondensedConv& conv, int tile, int rows) {
  const int tiles_w = (conv.q + conv.units_w * UNIT_PIXELS - 1) / (conv.units_w * UNIT_PIXELS);
  const int tiles_h = (conv.p + conv.tile_h - 1) / conv.tile_h;
  const int row_blocks = (conv.num_row_groups + conv.block_row_groups - 1) / conv.block_row_groups;
  return {
      tile / (tiles_w * tiles_h), rows / row_blocks, rows % row_blocks * conv.block_row_groups,
      tile / tiles_w % tiles_h * conv.tile_h, tile % tiles_w * conv.units_w * UNIT_PIXELS};
}

// One chunk in shared memory.
struct CondensedChunk {
  int4* inputs;    // [channels][kernel_w][plane] units
  int4* steps;     // [row groups][longest][fragments][lanes]
  int32_t* taps;   // [row groups][longest][columns]: where a column's inputs lie, in bytes from `inputs`
  int4* metadata;  // [row groups][longest] times what a step has
};

template <typename Steps>
__device__ __forceinline__ CondensedChunk find_chunk(const CondensedConv& conv, unsigned char* shared, int buffer) {
  constexpr StepLayout STEP = Steps::LAYOUT;
  const int num_inputs = conv.chunk_channels * conv.kernel_w * conv.plane;
  const int num_steps = conv.block_row_groups * conv.longest;
  // All inputs stand before all steps, so that both begin at 16 bytes.
  int4* inputs = reinterpret_cast<int4*>(shared) + buffer * num_inputs;
  int4* steps = reinterpret_cast<int4*>(shared) + conv.buffers * num_inputs + buffer * num_steps * Steps::SIZE;
  int4* taps = steps + num_steps * STEP.fragments * 32;
  return {inputs, steps, reinterpret_cast<int32_t*>(taps), taps + num_steps * (STEP.columns / 4)};
}

// The lines of inputs that one thread reads: of which places, in which channels.
struct InputShare {
  int first_place, place_step, first_channel, channel_step;

  // Threads side by side read along the dimension that is dense in memory.
  static __device__ __forceinline__ InputShare of(const CondensedConv& conv) {
    const int thread = threadIdx.x, threads = blockDim.x, places = conv.plane_h * conv.units_w;
    if (conv.x_stride_c == 1 && conv.chunk_channels <= threads) {
      const int step = threads / conv.chunk_channels;
      const int place = thread / conv.chunk_channels;
      return {place < step ? place : places, step, thread % conv.chunk_channels, conv.chunk_channels};
    }
    if (places <= threads) {
      const int step = threads / places;
      const int channel = thread / places;
      return {thread % places, places, channel < step ? channel : conv.chunk_channels, step};
    }
    return {thread, threads, 0, 1};
  }
};

// Read COUNT inputs of a line, `step` columns apart from column x on; outside the image they are zero.
template <bool IS_BFLOAT16, int COUNT>
__device__ __forceinline__ bool read_line(
    const CondensedConv& conv, const uint16_t* line, bool is_inside, int x, int step, uint16_t (&to)[COUNT]) {
  constexpr uint16_t EXPONENT = IS_BFLOAT16 ? 0x7f80 : 0x7c00;
  const uint16_t* from = line + x * conv.x_stride_w;
  const int64_t from_step = step * conv.x_stride_w;
  const unsigned w = is_inside ? conv.w : 0;
  bool has_special = false;
#pragma unroll
  for (int i = 0; i < COUNT; ++i, x += step, from += from_step) {
    to[i] = static_cast<unsigned>(x) < w ? __ldg(from) : uint16_t{0};
  }
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    has_special |= (to[i] & EXPONENT) == EXPONENT;
  }
  return has_special;
}

// Every STEP-th of the inputs from FIRST on, as a unit.
template <int FIRST, int STEP, int COUNT>
__device__ __forceinline__ int4 pack_unit(const uint16_t (&from)[COUNT]) {
  int word[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    word[i] = from[FIRST + 2 * i * STEP] | from[FIRST + (2 * i + 1) * STEP] << 16;
  }
  return {word[0], word[1], word[2], word[3]};
}

// Read a unit of inputs that lie side by side and inside the image, in as few loads as their address allows.
template <bool IS_BFLOAT16>
__device__ __forceinline__ bool read_unit(const uint16_t* from, int4& to) {
  constexpr int EXPONENT = IS_BFLOAT16 ? 0x7f80 : 0x7c00;
  if (reinterpret_cast<uintptr_t>(from) % 16 == 0) {
    to = __ldg(reinterpret_cast<const int4*>(from));
  } else {
    const int* words = reinterpret_cast<const int*>(from);
    to = {__ldg(words), __ldg(words + 1), __ldg(words + 2), __ldg(words + 3)};
  }
  bool has_special = false;
  for (const int word : {to.x, to.y, to.z, to.w}) {
    has_special |= (word & EXPONENT) == EXPONENT || (word >> 16 & EXPONENT) == EXPONENT;
  }
  return has_special;
}

// Copy a chunk's inputs; returns whether this thread met inf or nan.
template <bool IS_BFLOAT16, int SHIFTS, int STRIDE>
__device__ __forceinline__ bool stage_inputs(
    const CondensedConv& conv, const CondensedBlock& block, const InputShare& share, int chunk, int4* inputs) {
  const int first = chunk * conv.chunk_channels, places = conv.plane_h * conv.units_w;
  const int channels = min(conv.chunk_channels, conv.group_channels - first);
  const uint16_t* image =
      conv.x + block.image * conv.x_stride_n + (block.group * conv.group_channels + first) * conv.x_stride_c;
  const int top = block.first_p * conv.stride_h - conv.padding_h;
  const int left = block.first_q * conv.stride_w - conv.padding_w;
  const bool is_dense = conv.x_stride_w == 1 && conv.stride_w == 1;
  bool has_special = false;
  for (int place = share.first_place; place < places; place += share.place_step) {
    const int y = top + place / conv.units_w, x = left + place % conv.units_w * UNIT_PIXELS * conv.stride_w;
    const bool is_inside = y >= 0 && y < conv.h;
    const uint16_t* line = image + (is_inside ? y * conv.x_stride_h : 0);
#pragma unroll 1
    for (int c = share.first_channel; c < channels; c += share.channel_step) {
      const uint16_t* from = line + c * conv.x_stride_c;
      int4* to = inputs + c * conv.kernel_w * conv.plane + place;
      if constexpr (STRIDE > 0) {
        uint16_t value[(UNIT_PIXELS - 1) * STRIDE + SHIFTS];
        has_special |= read_line<IS_BFLOAT16>(conv, from, is_inside, x, 1, value);
        to[0] = pack_unit<0, STRIDE>(value);
        to[conv.plane] = pack_unit<1, STRIDE>(value);
        to[2 * conv.plane] = pack_unit<2, STRIDE>(value);
      } else {
#pragma unroll 1
        for (int s = 0; s < conv.kernel_w; ++s) {
          const int tap_x = x + s * conv.dilation_w;
          const uint16_t* unit = from + tap_x;
          if (is_dense && is_inside && tap_x >= 0 && tap_x + UNIT_PIXELS <= conv.w &&
              reinterpret_cast<uintptr_t>(unit) % 4 == 0) {
            int4 dense;
            has_special |= read_unit<IS_BFLOAT16>(unit, dense);
            to[s * conv.plane] = dense;
            continue;
          }
          uint16_t value[UNIT_PIXELS];
          has_special |= read_line<IS_BFLOAT16>(conv, from, is_inside, tap_x, conv.stride_w, value);
          to[s * conv.plane] = pack_unit<0, 1>(value);
        }
      }
    }
  }
  return has_special;
}

// The first step of a row group's run.
__device__ __forceinline__ const int32_t* run_start(
    const CondensedConv& conv, const CondensedBlock& block, int row_group, int chunk) {
  const int group = block.group * conv.num_row_groups + block.first_row_group + row_group;
  return conv.starts + group * conv.num_chunks + chunk;
}

// Copy the chunk's steps for each of the block's row groups, and turn their columns into places of inputs.
template <typename Steps>
__device__ __forceinline__ void stage_steps(
    const CondensedConv& conv, const CondensedBlock& block, int chunk, const CondensedChunk& to) {
  constexpr StepLayout STEP = Steps::LAYOUT;
  constexpr int WEIGHTS = STEP.fragments * 32;
  const int row_groups = min(conv.block_row_groups, conv.num_row_groups - block.first_row_group);
  const int4* fragments = reinterpret_cast<const int4*>(conv.fragments);
  for (int g = 0; g < row_groups; ++g) {
    const int32_t* start = run_start(conv, block, g, chunk);
    const int begin = start[0], count = start[1] - begin;
    for (int at = threadIdx.x; at < count * WEIGHTS; at += blockDim.x) {
      device::copy_async<16>(
          to.steps + g * conv.longest * WEIGHTS + at, fragments + int64_t{begin} * WEIGHTS + at, true);
    }
    if constexpr (STEP.metadata > 0) {
      const int4* metadata = reinterpret_cast<const int4*>(conv.metadata) + int64_t{begin} * STEP.metadata;
      for (int at = threadIdx.x; at < count * STEP.metadata; at += blockDim.x) {
        device::copy_async<16>(to.metadata + g * conv.longest * STEP.metadata + at, metadata + at, true);
      }
    }
    for (int at = threadIdx.x; at < count * STEP.columns; at += blockDim.x) {
      const int code = __ldg(conv.columns + int64_t{begin} * STEP.columns + at);
      const int plane = (code >> 16) * conv.kernel_w + (code & 255);
      const int line = (code >> 8 & 255) * conv.dilation_h;
      to.taps[g * conv.longest * STEP.columns + at] = 16 * (plane * conv.plane + line * conv.units_w);
    }
  }
}

}  // namespace prunekit
