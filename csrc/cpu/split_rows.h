#pragma once

#include <cstdint>
#include <vector>

#include "../sparse_filter.h"

namespace prunekit {

// Split a conv group's row groups [0, num_row_groups) into at most `parts` ranges of about equally many kept weights;
// `segments` are the group's, `nnz_end` is where its values end. Returns the ranges' bounds, first 0.
std::vector<int64_t> split_rows(const FilterLayout& f, const int32_t* segments, int64_t nnz_end, int64_t parts);

}  // namespace prunekit
