// What the plan hands to the compiled lane kernels. Plain types only: this header is compiled with different flags,
// so nothing in it may emit code that the linker could share.
//
// Lanes: a plane of H rows, `pitch` apart, is flattened and cut into LANES equal chunks of M pixels; vector j holds
// pixel j of every chunk. A tap at any (row, column) offset d is then the whole vector j + d: no load is unaligned.
// Beyond its chunk a vector reads its neighbor's pixels, so `front` vectors before and `back` vectors after each
// plane repeat the neighbors' (the halo).
#pragma once

#include <cstdint>

namespace prunekit {

// An enumeration, and the text of its names: Python has their numbers from it (step_declarations of plan.h).
#define PRUNEKIT_NAMED_ENUM(Name, ...) \
  enum Name { __VA_ARGS__ };           \
  constexpr const char* Name##Names = #__VA_ARGS__;

// The names of prunekit/engine/activations.py; lane_activations.h has a functor for each.
// clang-format off
#define PRUNEKIT_ACTIVATIONS(X) \
  X(NONE) X(LEAKY_RELU) X(RELU) X(RELU6) X(SILU) X(HARDSWISH) X(SIGMOID) X(HARDSIGMOID) X(TANH) X(GELU) X(GELU_TANH) \
  X(MISH) X(ELU)
// clang-format on

#define PRUNEKIT_ENUMERATOR(name) name,
enum class LaneActivation : int64_t { PRUNEKIT_ACTIVATIONS(PRUNEKIT_ENUMERATOR) };
#undef PRUNEKIT_ENUMERATOR
#define PRUNEKIT_AND_ONE(name) +1
constexpr int64_t NUM_ACTIVATIONS = 0 PRUNEKIT_ACTIVATIONS(PRUNEKIT_AND_ONE);
#undef PRUNEKIT_AND_ONE

struct LaneEpilogue {
  LaneActivation activation;
  float parameter;               // leaky_relu's slope below zero, elu's alpha
};

// One task of a convolution: `vectors` output vectors of a range of row groups of one conv group.
struct LaneConvTile {
  const float* x;                // the group's first channel at the first tap of the first output vector
  const int32_t* segments;       // the group's, see lane_filter.h
  const void* offsets;           // of the whole filter: uint16 or uint32, in vectors
  const void* values;            // of the whole filter: float or, in uint16, bfloat16
  int64_t segment_words, num_row_groups, num_channel_blocks, block_stride;  // elements between channel blocks
  int64_t row_group_begin, row_group_end, rows_per_group;
  // With one channel block: neighboring tiles that a row group does before the next one begins. Its few weights stay
  // at hand, the ends of its loops are predicted, and its planes are read and written in long runs.
  int64_t repeats;
  const float* bias;             // the group's, or null
  const float* residual;         // the group's first plane at the first output vector, or null
  int64_t residual_channel;
  LaneEpilogue before, after;    // around the addition of the residual
  const int32_t* mask;           // of the first output vector: all ones where a lane is a pixel of the image
  float* accumulators;           // scratch: (row_group_end - row_group_begin) · rows · vectors · lanes
  float* y;                      // the group's first output plane at the first output vector
  int64_t y_channel;
  bool is_streamed;              // y goes past the caches; the caller fences
};

// y = activation(x · scale + shift), or of x · scale + other, or of x · other; one channel.
struct LaneElementwise {
  const float* x;
  const float* other;            // or null
  float* y;
  int64_t vectors;
  bool is_product;               // x · other
  float scale, shift;
  LaneEpilogue epilogue;
  const int32_t* mask;           // or null
};

struct LanePool {
  const float* x;
  float* y;
  int64_t vectors;
  const int32_t* taps;           // offsets in vectors
  int64_t num_taps;
  int64_t step;                  // input vectors between neighboring output vectors
  bool is_max;
  const float* scales;           // of the sum, for each pixel, or null: `scale`
  float scale;
  const int32_t* mask;
};

// Copies of a plane as it looks from further on: copy i is the vectors [shifts[i], shifts[i] + vectors) of the plane, which
// goes on on both sides with its neighbors' pixels, ANDed with masks[i]. One channel.
struct LaneShifts {
  const float* x;
  float* y;                      // copies one behind the other
  int64_t vectors, num_copies;
  const int32_t* shifts;         // [num_copies]
  const int32_t* masks;          // [num_copies][vectors · lanes]
};

// Columns [begin, end) of a row: column j comes from column source + (j - begin) / repeat · step.
struct ColumnRun {
  int32_t begin, end;
  int32_t source;                // or -1: from nowhere, take `fill`
  int32_t step, repeat;
};

// A plane of another's pixels: row i and column j are row rows[i] and column columns(j) of the source. One channel;
// several planes may take from one source.
struct LaneRemap {
  const float* x;
  int64_t x_vectors, x_pitch;    // vectors of a plane in lanes, or 0 where x is planar; elements from row to row
  float* y;
  int64_t y_vectors, y_pitch;    // likewise
  int64_t y_back;                // vectors behind y_vectors that hold the next chunk's pixels
  int64_t y_plane;               // elements from plane to plane
  int64_t num_planes, num_rows, length;  // rows, and pixels of all of them: the last row may be short
  const int32_t* rows;           // [num_planes][num_rows], -1: `fill`
  const ColumnRun* const* runs;  // [num_planes], each ends with a run that begins at the pitch
  float fill;
  float* x_planar;               // scratch: x_vectors · lanes, and REMAP_SPARE elements behind
  float* y_planar;               // scratch: length, likewise
};
constexpr int64_t REMAP_SPARE = 64;

using LaneConvKernel = void (*)(const LaneConvTile&);

// How a convolution reads: neighboring output vectors one or two input vectors apart, offsets of 16 or 32 bits.
PRUNEKIT_NAMED_ENUM(LaneReading, STEP1_OFFSETS16, STEP1_OFFSETS32, STEP2_OFFSETS32)

// The kept weights' type; sums are float32 in any case.
PRUNEKIT_NAMED_ENUM(LaneWeights, FLOAT32_WEIGHTS, BFLOAT16_WEIGHTS)

struct LaneKernels {
  int64_t lanes;
  int64_t max_vectors[3];        // for 1, 2 and 4 rows
  // [LaneWeights][rows: 1, 2, 4][LaneReading] → table by vectors - 1
  const LaneConvKernel* conv[2][3][3];
  void (*elementwise)(const LaneElementwise&);
  void (*pool)(const LanePool&);
  void (*mean)(const float* x, int64_t vectors, float scale, float* y);
  // Repeat the neighbors' pixels around a plane of m vectors; beyond the image stands `fill`.
  void (*halo)(float* plane, int64_t m, int64_t front, int64_t back, float fill);
  void (*shifts)(const LaneShifts&);
  // Multiply and add in registers only; returns the floating-point operations done. The machine's peak.
  int64_t (*multiply_add)(int64_t iterations);
  // One multiply-add for each vector of x, from memory.
  void (*multiply_add_from)(const float* x, int64_t vectors);
  void (*remap)(const LaneRemap&);
};

}  // namespace prunekit
