// The packed filter: the one description of its layout (prunekit/ops/packed_conv2d.py holds the reference twin).
//
// `values` is a 1-D tensor of the kept weights. `index` is a 1-D int32 tensor:
//   header    HEADER_WORDS words, named below
//   segments  [groups][channel blocks][row groups], each: first id, first value, then a uint16 count per pattern
//   ids       uint16, two a word
// A row group is `rows` neighboring output channels of one conv group. Inside a segment (one row group, one block
// of `channel_block` input channels) the taps are sorted by pattern, the bit set of the row group's output channels
// that keep the tap: pattern 1 first, patterns ascending, taps ascending inside a pattern. A tap's id is
// (channel in block · R + r) · S + s; its values follow in row order. So one input load feeds several rows, and
// each pattern is one branch-free loop.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace prunekit {

constexpr int32_t FILTER_MAGIC = 0x504b4631;  // "PKF1"
constexpr int64_t HEADER_WORDS = 16;
constexpr int64_t MAX_BLOCK_TAPS = 65535;     // ids and counts are uint16

enum HeaderWord { MAGIC, OUT_CHANNELS, GROUP_CHANNELS, KERNEL_H, KERNEL_W, GROUPS, ROWS, CHANNEL_BLOCK, NNZ, NUM_IDS };

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct FilterLayout {
  int64_t out_channels, group_channels, kernel_h, kernel_w, groups, rows, channel_block;

  int64_t taps() const { return kernel_h * kernel_w; }
  int64_t rows_per_group() const { return out_channels / groups; }
  int64_t num_row_groups() const { return ceil_div(rows_per_group(), rows); }
  int64_t num_channel_blocks() const { return ceil_div(group_channels, channel_block); }
  int64_t num_patterns() const { return (int64_t{1} << rows) - 1; }
  int64_t segment_words() const { return 2 + (num_patterns() + 1) / 2; }
  int64_t num_segments() const { return groups * num_channel_blocks() * num_row_groups(); }
  int64_t ids_begin() const { return HEADER_WORDS + num_segments() * segment_words(); }
  int64_t index_words(int64_t num_ids) const { return ids_begin() + ceil_div(num_ids, 2); }

  static FilterLayout read(const int32_t* index, int64_t words, int64_t num_values) {
    STD_TORCH_CHECK(
        words >= HEADER_WORDS && index[MAGIC] == FILTER_MAGIC, "index is not a packed filter of this version");
    const FilterLayout layout{index[OUT_CHANNELS], index[GROUP_CHANNELS], index[KERNEL_H],     index[KERNEL_W],
                              index[GROUPS],       index[ROWS],           index[CHANNEL_BLOCK]};
    STD_TORCH_CHECK(
        (layout.rows == 1 || layout.rows == 2 || layout.rows == 4) && layout.groups > 0 && layout.channel_block > 0 &&
            layout.out_channels > 0 && layout.out_channels % layout.groups == 0 && layout.group_channels > 0 &&
            layout.kernel_h > 0 && layout.kernel_w > 0 && index[NUM_IDS] >= 0 &&
            layout.channel_block <= MAX_BLOCK_TAPS && layout.channel_block * layout.taps() <= MAX_BLOCK_TAPS &&
            words == layout.index_words(index[NUM_IDS]) && num_values == index[NNZ],
        "the packed filter is damaged: its header does not fit its ", words, " words and ", num_values, " values");
    return layout;
  }
};

}  // namespace prunekit
