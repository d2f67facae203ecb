// What the instruction-set independent launcher hands to the compiled tile kernels. Plain types only: this header
// is compiled with different flags, so nothing in it may emit code that the linker could share.
#pragma once

#include <cstdint>

namespace prunekit {

enum class Activation : int32_t { NONE, LEAKY_RELU };

// One task: a block of flattened output pixels of one image × a range of row groups of one conv group.
template <typename T>
struct Tile {
  const T* planes;               // the group's first padded channel
  const int32_t* tap_offset;     // [channels · R · S]
  const int32_t* segments;       // the group's first segment
  const uint16_t* ids;           // of the whole filter
  const T* values;               // of the whole filter
  int64_t segment_words, block_taps, num_channel_blocks, num_row_groups;
  int64_t row_group_begin, row_group_end, rows_per_group;
  const T* bias;                 // the group's, or null
  Activation activation;
  T negative_slope;
  T* accumulators;               // scratch: (row_group_end - row_group_begin) · rows · vectors · lanes
  T* y;                          // the group's first output plane
  int64_t y_plane, pitch, q;     // P · Q, the padded pitch, the output width
  int64_t first, store_from, end;  // flattened pixels: computed from `first`, stored in [store_from, end)
  int64_t vectors;               // pixel vectors in the block
};

template <typename T>
struct TileKernels {
  int64_t lanes;
  int64_t max_vectors_rows1, max_vectors_rows4;
  void (*run_rows1)(const Tile<T>&);
  void (*run_rows4)(const Tile<T>&);
};

struct InstructionSet {
  const char* name;
  TileKernels<float> f32;
  TileKernels<double> f64;
};

}  // namespace prunekit
