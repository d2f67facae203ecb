// Packing: two parallel passes over the mask, one to count and one to write. See sparse_filter.h for the layout.
#include "pack_filter.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

namespace prunekit {
namespace {

// Four rows share loads where several of them keep a tap; with few kept weights overlaps are rare and one row with
// a longer pixel block wins. Measured on YOLOv3's layers (prunekit bench layers): the two meet near 20 % density.
constexpr double ROWS4_MIN_DENSITY = 0.2;
// Bytes of input that a channel block may touch so that it stays in a 32 KB L1 beside weights and accumulators.
constexpr int64_t L1_BUDGET = 28 * 1024;
constexpr int64_t ROW_BYTES_ROWS1 = 16 * 64 + 64, ROW_BYTES_ROWS4 = 6 * 64 + 64;

int64_t default_channel_block(int64_t rows, int64_t kernel_h) {
  return std::max<int64_t>(1, L1_BUDGET / (kernel_h * (rows == 1 ? ROW_BYTES_ROWS1 : ROW_BYTES_ROWS4)));
}

int64_t count_kept(const bool* mask, int64_t size) { return std::count(mask, mask + size, true); }

// Call visit(pattern, id, tap's position in a row) for the taps of one segment, in tap order.
template <typename Visit>
void visit_segment(const FilterLayout& f, const bool* mask, int64_t segment, const Visit& visit) {
  const int64_t row_group = segment % f.num_row_groups();
  const int64_t block = segment / f.num_row_groups() % f.num_channel_blocks();
  const int64_t group = segment / f.num_row_groups() / f.num_channel_blocks();
  const int64_t row_taps = f.group_channels * f.taps();
  const int64_t first_row = group * f.rows_per_group() + row_group * f.rows;
  const int64_t num_rows = std::min(f.rows, f.rows_per_group() - row_group * f.rows);
  const int64_t first_tap = block * f.channel_block * f.taps();
  const int64_t num_taps = std::min(f.channel_block * f.taps(), row_taps - first_tap);
  const int64_t first = first_row * row_taps + first_tap;
  for (int64_t id = 0; id < num_taps; ++id) {
    int pattern = 0;
    for (int64_t r = 0; r < num_rows; ++r) {
      pattern |= mask[first + r * row_taps + id] << r;
    }
    if (pattern) {
      visit(pattern, id, first + id);
    }
  }
}

template <typename T>
void write_values(const FilterLayout& f, const bool* mask, const T* weight, int32_t* index, uint16_t* ids, T* values) {
  const int64_t row_taps = f.group_channels * f.taps();
  torch::stable::parallel_for(0, f.num_segments(), 64, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      const int32_t* segment = index + HEADER_WORDS + s * f.segment_words();
      const uint16_t* counts = reinterpret_cast<const uint16_t*>(segment + 2);
      int64_t id_at[16], value_at[16];
      id_at[1] = segment[0], value_at[1] = segment[1];
      for (int pattern = 1; pattern < f.num_patterns(); ++pattern) {
        id_at[pattern + 1] = id_at[pattern] + counts[pattern - 1];
        value_at[pattern + 1] = value_at[pattern] + counts[pattern - 1] * __builtin_popcount(pattern);
      }
      visit_segment(f, mask, s, [&](int pattern, int64_t id, int64_t position) {
        ids[id_at[pattern]++] = static_cast<uint16_t>(id);
        for (int64_t r = 0; r < f.rows; ++r) {
          if (pattern >> r & 1) {
            values[value_at[pattern]++] = weight[position + r * row_taps];
          }
        }
      });
    }
  });
}

// Write counts and starts; return (number of ids, number of values).
std::pair<int64_t, int64_t> write_segments(const FilterLayout& f, const bool* mask, int32_t* segments) {
  std::fill(segments, segments + f.num_segments() * f.segment_words(), 0);
  torch::stable::parallel_for(0, f.num_segments(), 64, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      uint16_t* counts = reinterpret_cast<uint16_t*>(segments + s * f.segment_words() + 2);
      visit_segment(f, mask, s, [&](int pattern, int64_t, int64_t) { ++counts[pattern - 1]; });
    }
  });
  int64_t num_ids = 0, num_values = 0;
  for (int64_t s = 0; s < f.num_segments(); ++s) {
    int32_t* segment = segments + s * f.segment_words();
    const uint16_t* counts = reinterpret_cast<const uint16_t*>(segment + 2);
    segment[0] = static_cast<int32_t>(num_ids);
    segment[1] = static_cast<int32_t>(num_values);
    for (int pattern = 1; pattern <= f.num_patterns(); ++pattern) {
      num_ids += counts[pattern - 1];
      num_values += counts[pattern - 1] * __builtin_popcount(pattern);
    }
  }
  return {num_ids, num_values};
}

FilterLayout choose_layout(
    const Tensor& weight, int64_t num_kept, int64_t groups, int64_t rows, int64_t channel_block) {
  FilterLayout f{weight.size(0), weight.size(1), weight.size(2), weight.size(3), groups, rows, channel_block};
  if (f.rows == 0) {
    f.rows = num_kept >= ROWS4_MIN_DENSITY * weight.numel() ? 4 : 1;
  }
  if (f.channel_block == 0) {
    f.channel_block = default_channel_block(f.rows, f.kernel_h);
  }
  f.channel_block = std::min({f.channel_block, f.group_channels, MAX_BLOCK_TAPS / f.taps()});
  return f;
}

}  // namespace

std::tuple<Tensor, Tensor> pack_filter(
    const Tensor& weight, const Tensor& mask, int64_t groups, int64_t rows, int64_t channel_block) {
  check_cpu(weight, "weight");
  check_cpu(mask, "mask");
  STD_TORCH_CHECK(
      weight.dim() == 4 && weight.numel() > 0 && weight.numel() < INT32_MAX,
      "prunekit expects a weight [K, C / groups, R, S] of 1 to 2^31 - 1 elements, got ", shape_of(weight));
  STD_TORCH_CHECK(
      mask.scalar_type() == ScalarType::Bool && shape_of(mask) == shape_of(weight),
      "prunekit expects a bool mask of the weight's shape ", shape_of(weight), ", got shape ", shape_of(mask));
  STD_TORCH_CHECK(groups > 0 && weight.size(0) % groups == 0, "output channels are not divisible by groups ", groups);
  STD_TORCH_CHECK(rows == 0 || rows == 1 || rows == 2 || rows == 4, "rows must be 0 (choose), 1, 2 or 4, got ", rows);
  STD_TORCH_CHECK(channel_block >= 0, "channel_block must not be negative, got ", channel_block);
  STD_TORCH_CHECK(weight.size(2) * weight.size(3) <= MAX_BLOCK_TAPS, "the kernel has more than 65535 taps");

  const Tensor dense = torch::stable::contiguous(weight), kept = torch::stable::contiguous(mask);
  const bool* mask_data = kept.const_data_ptr<bool>();
  const FilterLayout f = choose_layout(weight, count_kept(mask_data, weight.numel()), groups, rows, channel_block);
  std::vector<int32_t> segments(f.num_segments() * f.segment_words());
  const auto [num_ids, num_values] = write_segments(f, mask_data, segments.data());

  Tensor index = torch::stable::new_empty(weight, {f.index_words(num_ids)}, ScalarType::Int);
  Tensor values = torch::stable::new_empty(weight, {num_values});
  int32_t* words = index.mutable_data_ptr<int32_t>();
  const int64_t header[] = {FILTER_MAGIC, f.out_channels, f.group_channels, f.kernel_h, f.kernel_w,
                            f.groups,     f.rows,         f.channel_block,  num_values, num_ids};
  std::fill(words, words + HEADER_WORDS, 0);
  std::copy(std::begin(header), std::end(header), words);
  std::copy(segments.begin(), segments.end(), words + HEADER_WORDS);
  if (num_ids) {
    words[f.index_words(num_ids) - 1] = 0;  // an odd number of ids leaves half a word
  }
  uint16_t* ids = reinterpret_cast<uint16_t*>(words + f.ids_begin());
  if (weight.scalar_type() == ScalarType::Float) {
    write_values(f, mask_data, dense.const_data_ptr<float>(), words, ids, values.mutable_data_ptr<float>());
  } else {
    STD_TORCH_CHECK(weight.scalar_type() == ScalarType::Double, "prunekit packs float32 and float64 weights");
    write_values(f, mask_data, dense.const_data_ptr<double>(), words, ids, values.mutable_data_ptr<double>());
  }
  return {index, values};
}

STABLE_TORCH_LIBRARY_IMPL(prunekit, CPU, m) { m.impl("pack_filter", TORCH_BOX(&pack_filter)); }

}  // namespace prunekit
