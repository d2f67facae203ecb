#pragma once

#include <tuple>

#include "../check.h"
#include "../sparse_filter.h"

namespace prunekit {

// Pack the kept weights of `weight` [K, C, R, S]; rows and channel_block 0 choose by density. Returns (index, values).
std::tuple<Tensor, Tensor> pack_filter(
    const Tensor& weight, const Tensor& mask, int64_t groups, int64_t rows, int64_t channel_block);

}  // namespace prunekit
