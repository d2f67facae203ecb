// What the plan hands to the compiled kernels of int8. Plain types only, as in lane_kernels.h.
//
// Quads: an element of a lane plane is not a float32 but four uint8, neighboring channels of one pixel. Halos, phases
// and resized planes move them as they move float32. A byte q stands for scale · (q - zero); what is no pixel holds
// `zero`, in every byte. Weights are int8, four a tap and output channel, and sums are exact in int32.
#pragma once

#include <cstdint>

#include "lane_kernels.h"

namespace prunekit {

// One task of a convolution; fields that LaneConvTile has as well mean the same.
struct QuadConvTile {
  const float* x;                // quads
  const int32_t* segments;
  const void* offsets;
  const void* values;            // int8, four of a tap in 32 bits
  int64_t segment_words, num_row_groups, num_channel_blocks, block_stride;
  int64_t row_group_begin, row_group_end, rows_per_group;
  int64_t repeats;
  const int32_t* sums;           // that the sums of each output channel begin with
  const float* scales;           // of each output channel's sum
  const float* bias;
  const float* residual;         // quads, or null
  int64_t residual_channel;
  float residual_scale;
  int32_t residual_zero;
  LaneEpilogue before, after;
  const int32_t* mask;
  float* accumulators;
  float* y;                      // quads, or planes of float32, four a row group
  int64_t y_channel;
  bool is_float;
  float y_scale;
  int32_t y_zero;
};

// Four planes of float32 and a plane of quads, from one to the other; of channels from `channels` on there is no plane.
struct QuadConversion {
  const float* x;
  int64_t x_channel;
  float* y;
  int64_t y_channel;
  int64_t vectors, channels;
  float scale;
  int32_t zero;
  const int32_t* mask;
};

struct QuadPool {
  const float* x;
  float* y;
  int64_t vectors;
  const int32_t* taps;
  int64_t num_taps;
  int64_t step;
  int32_t zero;
  const int32_t* mask;
};

using QuadConvKernel = void (*)(const QuadConvTile&);

struct QuadKernels {
  const char* dot;               // the instruction that multiplies quads, or "none"
  int64_t rate;                  // its multiply-adds in the time of one in float32, or 0
  int64_t lanes, max_vectors;
  // What is subtracted from each byte of x before it is multiplied: sums begin with as many times the weights' sum.
  int64_t x_shift;
  // What the weights of one sign in either half of a quad may add up to, at most 254; larger quads are taken as two.
  int64_t max_pair;
  const QuadConvKernel* conv[3];  // by LaneReading, then by vectors - 1; of filters of 4 rows
  void (*quantize)(const QuadConversion&);
  void (*dequantize)(const QuadConversion&);
  void (*max_pool)(const QuadPool&);
};

constexpr int64_t QUAD_ROWS = 4;

}  // namespace prunekit
