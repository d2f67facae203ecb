// The launcher of the kernel on sparse tensor cores: what the binding, compiled without CUDA's headers, knows of it.
#pragma once

#include "semi_structured/filter.h"
#include "condensed/launch.h"

namespace prunekit {

constexpr StepLayout semi_structured_step(int fragments) { return {fragments, SPARSE_STEP_COLUMNS, 4 * fragments}; }

inline std::array<FilterTensor, 5> semi_structured_tensors(CondensedConv& conv, const int64_t* header) {
  const auto count = FragmentCounts::of(header, semi_structured_step(header[SEMI_STRUCTURED_FRAGMENTS]));
  return {
      {{"starts", count.starts, &conv.starts},
       {"columns", count.columns, &conv.columns},
       {"fragments", count.fragments, nullptr, &conv.fragments},
       {"metadata", count.metadata, &conv.metadata},
       {"rows", count.rows, &conv.rows}}};
}

// Units that a warp sums: registers allow two blocks of MAX_CONDENSED_WARPS with one or two fragments, one with four.
constexpr int semi_structured_units(int fragments) { return fragments == 2 ? 4 : 8; }

inline GridLaunch plan_semi_structured_launch(CondensedConv& conv, const int64_t* header) {
  const int64_t fragments = header[SEMI_STRUCTURED_FRAGMENTS];
  const bool is_known = fragments == 1 || fragments == 2 || fragments == 4;
  if (!is_known || conv.warp_units != semi_structured_units(static_cast<int>(fragments))) {
    return {0, 0, 0, 0, "the launch is none that the kernel knows for this filter's row groups"};
  }
  const int64_t step_bytes = int64_t{16} * semi_structured_step(static_cast<int>(fragments)).size();
  return plan_block(conv, header, fragments, step_bytes * header[SEMI_STRUCTURED_LONGEST], true);
}

// Run as `launch_condensed_conv2d` does.
std::string launch_semi_structured_conv2d(
    const CondensedConv& conv, const GridLaunch& launch, const int64_t* header, bool is_bfloat16, void* stream);

}  // namespace prunekit
