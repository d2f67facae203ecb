// A plan: a whole network as a list of steps over one arena of lane buffers (lane_kernels.h tells the layout).
//
// The steps come from Python (prunekit/engine/) as rows of int64 words: the kind, then the fields of the step's struct
// in order. Python has the order from here: it reads the struct's own text (`step_declarations`), and knows the fields
// by their names. Places in the arena are in elements; pointers lead to tensors that Python keeps alive.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace prunekit {

constexpr int64_t STEP_WORDS = 32;
constexpr int64_t IN_ARENA = -1;

enum StepKind : int64_t {
  CONV,
  HALO,
  REMAP,
  ELEMENTWISE,
  POOL,
  MEAN,
  SHIFT,
  QUAD_CONV,
  QUANTIZE,
  DEQUANTIZE,
  QUAD_POOL
};

// A struct of words, and the text of its fields.
#define PRUNEKIT_STEP(Name, ...) \
  struct Name {                  \
    __VA_ARGS__                  \
  };                             \
  inline constexpr const char* Name##Fields = #__VA_ARGS__;

// clang-format off: what follows are structs
PRUNEKIT_STEP(EpilogueWords,
  int64_t activation;
  double parameter;
)

// y[k] = after(before(bias[k] + sum of value · x) + residual[k]), k over all groups' output channels.
PRUNEKIT_STEP(ConvStep,
  int64_t x, x_channel;          // channel 0 at the first tap of output vector 0
  int64_t y, y_channel;
  int64_t vectors, tile_vectors;
  const int32_t* index;          // a packed filter, sparse_filter.h
  int64_t index_words;
  const void* offsets;           // its ids as offsets in vectors
  int64_t reading;               // LaneReading: offsets are uint16 or uint32
  const void* values;
  int64_t num_values;
  int64_t weights;               // LaneWeights: what `values` are
  const float* bias;
  int64_t residual, residual_channel;  // residual < 0: none
  EpilogueWords before, after;
  const int32_t* mask;
  int64_t row_parts;
  // With a stride, tiles stay inside rows: output vectors a row, and input elements from row to row. Else 0.
  int64_t row_vectors, x_row;
  int64_t repeats;               // tiles that a row group does in one go, with one channel block
)

PRUNEKIT_STEP(HaloStep,
  int64_t y, y_channel, channels, vectors, front, back;
  int64_t fill;                  // the bits of an element beyond the image
)

// y[plane][c][i][j] = rows[plane][i] < 0 or columns[plane][j] < 0 ? fill : x[c][rows[plane][i]][columns[plane][j]]
PRUNEKIT_STEP(RemapStep,
  int64_t input;                 // which input of the plan, or IN_ARENA
  int64_t x, x_channel;
  int64_t x_vectors, x_pitch;    // of a plane in lanes, or 0: planar; elements from row to row
  int64_t output;                // which output of the plan, or IN_ARENA
  int64_t y, y_channel;
  int64_t y_vectors, y_pitch, y_back;  // likewise; vectors behind that hold the next chunk's pixels
  int64_t channels;
  int64_t planes, plane;         // of each channel, one behind the other; elements from plane to plane
  int64_t num_rows, length;      // of a plane; pixels of all rows, the last of which may be short
  const int32_t* rows;           // [planes, num_rows]
  const int32_t* columns;        // [planes, y_pitch]
  int64_t fill;                  // the bits of an element
)

// y[c] = activation(x[pick(c)] · scale + shift), or of x · scale + other, or of x · other. The scale is scale_factor times a
// constant of each channel, or the pixel of a plane in the arena, or 1; the shift likewise, with 0.
PRUNEKIT_STEP(ElementwiseStep,
  int64_t x, x_channel, other, other_channel, y, y_channel, channels, vectors;  // other < 0: none
  int64_t is_product;
  const float* scale;            // [channels] or null
  const float* shift;            // likewise
  int64_t scale_at, scale_channel;  // < 0: none
  int64_t shift_at, shift_channel;
  double scale_factor, shift_factor;
  EpilogueWords epilogue;
  const int32_t* mask;           // or null
  const int32_t* picks;          // [channels] the channels of x, or null: in order
)

PRUNEKIT_STEP(PoolStep,
  int64_t x, x_channel, y, y_channel, channels, vectors;
  const int32_t* taps;
  int64_t num_taps, is_max;
  double scale;
  const int32_t* mask;
  int64_t row_vectors, x_row;    // as in ConvStep; the stride is 2
  const float* scales;           // [vectors · lanes] of the sums, or null: `scale`
)

// y[c] = scale · sum of x[c], a plane of one pixel.
PRUNEKIT_STEP(MeanStep,
  int64_t x, x_channel, y, y_channel, channels, vectors;
  double scale;
)

// Copies of x[c] as it looks from `shifts` vectors further on, one behind the other in y[c]; see LaneShifts.
PRUNEKIT_STEP(ShiftStep,
  int64_t x, x_channel, y, y_channel, channels, vectors, num_copies;
  const int32_t* shifts;         // [num_copies]
  const int32_t* masks;          // [num_copies, vectors · lanes]
)

// Quads (quad_kernels.h): an element is four uint8 channels of a pixel. q stands for scale · (q - zero).
//
// y[k] = after(before(bias[k] + scales[k] · (sums[k] + sum of weight · q)) + residual[k]), as levels or as float32.
PRUNEKIT_STEP(QuadConvStep,
  int64_t x, x_channel;          // as in ConvStep: of quads
  int64_t y, y_channel;
  int64_t vectors, tile_vectors;
  const int32_t* index;          // a packed filter of 4 rows, whose channels are quads and whose values are four int8
  int64_t index_words;
  const void* offsets;
  int64_t reading;
  const void* values;
  int64_t num_values;
  const int32_t* sums;           // [4 · row groups], as are the next two
  const float* scales;
  const float* bias;
  int64_t residual, residual_channel;  // of quads; residual < 0: none
  double residual_scale;
  int64_t residual_zero;
  EpilogueWords before, after;
  int64_t is_float;              // y is planes of float32, four a row group, and not quads
  double y_scale;
  int64_t y_zero;
  const int32_t* mask;
  int64_t row_parts;
  int64_t row_vectors, x_row;
  int64_t repeats;
)

// Planes of float32 to quads, or back; `channels` are those of float32.
PRUNEKIT_STEP(QuantizeStep,
  int64_t x, x_channel, y, y_channel, channels, vectors;
  double scale;
  int64_t zero;
  const int32_t* mask;
)

// The largest of each channel; `channels` are quads.
PRUNEKIT_STEP(QuadPoolStep,
  int64_t x, x_channel, y, y_channel, channels, vectors;
  const int32_t* taps;
  int64_t num_taps;
  int64_t zero;
  const int32_t* mask;
  int64_t row_vectors, x_row;    // as in PoolStep
)

// clang-format on

// What Python reads: a kind of step, or -1 for a struct or enumeration of words, its name, the text of its fields or
// names, and its size in words.
struct StepDeclaration {
  int64_t kind;
  const char* name;
  const char* fields;
  int64_t words;
};
std::vector<StepDeclaration> step_declarations();

struct Image {
  const float* data;
  int64_t batch_stride;          // elements
};
struct Result {
  float* data;
  int64_t batch_stride;
};

struct Step;
struct Arena;
struct Memory;
struct LaneKernels;

class Plan {
 public:
  // Throws when a step leaves the arena or does not fit its filter.
  Plan(const int64_t* words, int64_t num_words, int64_t arena_elements, int64_t num_inputs, int64_t num_outputs);
  ~Plan();
  // Run `batch` images one after the other; threads may call at the same time. `step_ends`, when not null, takes
  // for each step the nanoseconds from the beginning of the last image to the step's end. `arena`, when not null, is
  // the caller's: arena_elements, aligned to cache lines, with whatever is in them.
  void run(
      const std::vector<Image>& inputs, const std::vector<Result>& outputs, int64_t batch, int64_t* step_ends,
      float* arena) const;
  int64_t num_inputs() const { return num_inputs_; }
  int64_t num_outputs() const { return num_outputs_; }
  int64_t num_steps() const { return static_cast<int64_t>(steps_.size()); }

 private:
  std::unique_ptr<Arena> take_arena() const;
  void run_image(const Memory& memory, int64_t* step_ends) const;

  const LaneKernels& kernels_;
  std::vector<std::unique_ptr<Step>> steps_;
  int64_t arena_elements_, num_inputs_, num_outputs_;
  int64_t scratch_elements_[2] = {0, 0};
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Arena>> free_arenas_;
};

}  // namespace prunekit
