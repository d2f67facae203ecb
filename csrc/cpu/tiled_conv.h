// A convolution of any precision as tasks that threads share: tiles of output vectors × ranges of output channels.
#pragma once

#include <algorithm>

#include "../sparse_filter.h"
#include "split_rows.h"
#include "step.h"

namespace prunekit {

// `Words` is the step's struct of plan.h, `Tile` what its kernels take.
template <typename Words, typename Tile>
class TiledConv : public Step {
 public:
  int64_t num_tasks() const override { return ceil_div(units_, units_per_task_); }

  // Sums rest in scratch memory between channel blocks; with one block a row group's sums are enough.
  int64_t scratch_elements(int slot, int64_t lanes) const override {
    return slot != SUMS_SLOT
        ? 0
        : (filter_.num_channel_blocks() > 1 ? longest_part_ : 1) * filter_.rows * s_.tile_vectors * lanes;
  }

  void run(const LaneKernels& kernels, const Memory& memory, int64_t task) const override {
    const FilterLayout& f = filter_;
    const int64_t end = std::min(units_, (task + 1) * units_per_task_);
    for (int64_t unit = task * units_per_task_; unit < end; ++unit) {
      const int64_t pixel = unit / static_cast<int64_t>(parts_.size());
      const Part& part = parts_[unit % static_cast<int64_t>(parts_.size())];
      const int64_t row = pixel / tiles_a_row_, column = pixel % tiles_a_row_;
      const int64_t begin = column * s_.tile_vectors * s_.repeats;
      const int64_t vectors = std::min(row_vectors() - begin, s_.tile_vectors * s_.repeats);
      const int64_t first = row * row_vectors() + begin;
      const int64_t first_row = part.group * f.rows_per_group();
      Tile tile;
      tile.x = memory.arena + s_.x + part.group * f.group_channels * s_.x_channel + row * s_.x_row +
          begin * step() * kernels.lanes;
      tile.segments = segments_ + part.group * group_words_;
      tile.offsets = s_.offsets;
      tile.values = s_.values;
      tile.segment_words = f.segment_words();
      tile.num_row_groups = f.num_row_groups();
      tile.num_channel_blocks = f.num_channel_blocks();
      tile.block_stride = f.channel_block * s_.x_channel;
      tile.row_group_begin = part.begin;
      tile.row_group_end = part.end;
      tile.rows_per_group = f.rows_per_group();
      tile.residual = s_.residual < 0
          ? nullptr
          : memory.arena + s_.residual + first_row * s_.residual_channel + first * kernels.lanes;
      tile.residual_channel = s_.residual_channel;
      tile.before = before_;
      tile.after = after_;
      tile.mask = s_.mask + first * kernels.lanes;
      tile.accumulators = scratch<float>(SUMS_SLOT, scratch_elements(SUMS_SLOT, kernels.lanes));
      tile.y = memory.arena + s_.y + first_row * s_.y_channel + first * kernels.lanes;
      tile.y_channel = s_.y_channel;
      complete(tile, first_row);
      tile.repeats = vectors / s_.tile_vectors;
      if (tile.repeats > 0) {
        run_tile(tile, s_.tile_vectors);
      }
      const int64_t done = tile.repeats * s_.tile_vectors;
      if (done < vectors) {
        tile.repeats = 1;
        tile.x += done * step() * kernels.lanes;
        tile.y += done * kernels.lanes;
        tile.mask += done * kernels.lanes;
        tile.residual += tile.residual ? done * kernels.lanes : 0;
        run_tile(tile, vectors - done);
      }
    }
    end_task();
  }

 protected:
  // `out_planes` and `residual_planes` are the planes of the output and, where there is one, of the residual.
  TiledConv(
      const Words& s, int64_t out_planes, int64_t residual_planes, int64_t max_vectors, const Bounds& bounds,
      int64_t threads)
      : s_(s), filter_(FilterLayout::read(s.index, s.index_words, s.num_values)) {
    const FilterLayout& f = filter_;
    require(s.tile_vectors >= 1 && s.tile_vectors <= max_vectors, "tile too long");
    require(s.row_parts <= f.out_channels && s.repeats <= INT32_MAX, "row parts or repeats");
    require(s.row_parts >= 1 && s.reading >= STEP1_OFFSETS16 && s.reading <= STEP2_OFFSETS32, "row parts or reading");
    require_aligned(s.mask);
    require(
        s.x_row >= 0 && s.row_vectors >= 0 && (s.row_vectors == 0) == (s.reading != STEP2_OFFSETS32),
        "a row's vectors");
    bounds.contain_planes(s.y, s.y_channel, out_planes, s.vectors, "the output of a convolution");
    if (s.residual >= 0) {
      bounds.contain_planes(s.residual, s.residual_channel, residual_planes, s.vectors, "the residual");
    }
    require(s.x % bounds.lanes == 0 && s.x_channel % bounds.lanes == 0 && s.x_channel >= 0, "unaligned input");
    check_offsets(bounds);
    before_ = epilogue_of(s.before);
    after_ = epilogue_of(s.after);
    segments_ = s.index + HEADER_WORDS;
    group_words_ = f.num_channel_blocks() * f.num_row_groups() * f.segment_words();
    std::vector<std::vector<int64_t>> row_bounds;
    for (int64_t g = 0; g < f.groups; ++g) {
      const int64_t nnz_end = g + 1 < f.groups ? segments_[(g + 1) * group_words_ + 1] : s.num_values;
      row_bounds.push_back(split_rows(f, segments_ + g * group_words_, nnz_end, s.row_parts));
    }
    require(s.repeats >= 1 && (s.repeats == 1 || f.num_channel_blocks() == 1), "repeats with channel blocks");
    tiles_a_row_ = ceil_div(row_vectors(), s.tile_vectors * s.repeats);
    const int64_t tiles = tiles_a_row_ * ceil_div(s.vectors, row_vectors());
    for (int64_t g = 0; g < f.groups; ++g) {
      for (size_t part = 0; part + 1 < row_bounds[g].size(); ++part) {
        parts_.push_back({g, row_bounds[g][part], row_bounds[g][part + 1]});
        longest_part_ = std::max(longest_part_, parts_.back().end - parts_.back().begin);
      }
    }
    units_ = static_cast<int64_t>(parts_.size()) * tiles;
    units_per_task_ = std::max<int64_t>(1, units_ / (TASKS_PER_THREAD * 4 * threads));
  }

  // Set what only tiles of this precision have; `first_row` is the first output channel of the tile's group.
  virtual void complete(Tile& tile, int64_t first_row) const = 0;
  // Run the kernel for tiles of so many vectors.
  virtual void run_tile(const Tile& tile, int64_t vectors) const = 0;
  virtual void end_task() const {}

  const Words s_;
  const FilterLayout filter_;

 private:
  struct Part {
    int64_t group, begin, end;
  };

  int64_t row_vectors() const { return s_.row_vectors ? s_.row_vectors : s_.vectors; }
  int64_t step() const { return s_.reading == STEP2_OFFSETS32 ? 2 : 1; }

  // The ids of a channel block follow each other; an offset is relative to the block's first channel.
  void check_offsets(const Bounds& bounds) const {
    const FilterLayout& f = filter_;
    const int64_t block_words = f.num_row_groups() * f.segment_words();
    for (int64_t block = 0; block < f.groups * f.num_channel_blocks(); ++block) {
      const int32_t* segment = s_.index + HEADER_WORDS + block * block_words;
      const bool is_last = block + 1 == f.groups * f.num_channel_blocks();
      const int64_t begin = segment[0], end = is_last ? s_.index[NUM_IDS] : segment[block_words];
      int64_t largest = 0;
      for (int64_t i = begin; i < end; ++i) {
        largest = std::max<int64_t>(
            largest,
            s_.reading == STEP1_OFFSETS16 ? static_cast<const uint16_t*>(s_.offsets)[i]
                                          : static_cast<const uint32_t*>(s_.offsets)[i]);
      }
      const int64_t channel =
          block / f.num_channel_blocks() * f.group_channels + block % f.num_channel_blocks() * f.channel_block;
      const int64_t first = s_.x + channel * s_.x_channel;
      const int64_t rows = ceil_div(s_.vectors, row_vectors());
      const int64_t last = (rows - 1) * s_.x_row + (row_vectors() - 1) * step() * bounds.lanes;
      bounds.contain(first, first + last + (largest + 1) * bounds.lanes, "the taps of a convolution");
    }
  }

  const int32_t* segments_;
  int64_t group_words_, tiles_a_row_, units_, units_per_task_, longest_part_ = 0;
  LaneEpilogue before_, after_;
  std::vector<Part> parts_;
};

}  // namespace prunekit
