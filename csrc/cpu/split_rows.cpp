#include "split_rows.h"

#include <algorithm>

namespace prunekit {

std::vector<int64_t> split_rows(const FilterLayout& f, const int32_t* segments, int64_t nnz_end, int64_t parts) {
  std::vector<int64_t> work(f.num_row_groups() + 1, 0);
  for (int64_t s = 0; s < f.num_channel_blocks() * f.num_row_groups(); ++s) {
    const int32_t* segment = segments + s * f.segment_words();
    const bool is_last = s + 1 == f.num_channel_blocks() * f.num_row_groups();
    const int64_t next = is_last ? nnz_end : segment[f.segment_words() + 1];
    // A row group costs its kept weights and the passing of its accumulators, about one tap a row.
    work[s % f.num_row_groups() + 1] += next - segment[1] + f.rows;
  }
  for (int64_t i = 0; i < f.num_row_groups(); ++i) {
    work[i + 1] += work[i];
  }
  std::vector<int64_t> bounds = {0};
  for (int64_t part = 1; part <= parts; ++part) {
    const auto at = std::lower_bound(work.begin(), work.end(), ceil_div(work.back() * part, parts));
    const int64_t bound = part == parts ? f.num_row_groups() : at - work.begin();
    if (bound > bounds.back()) {
      bounds.push_back(bound);
    }
  }
  return bounds;
}

}  // namespace prunekit
