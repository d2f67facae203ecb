// The launcher of the kernel on sparse tensor cores: what the binding, compiled without CUDA's headers, knows of it.
#pragma once

#include <cstdint>
#include <string>

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

inline CondensedLaunch plan_semi_structured_launch(CondensedConv& conv, const int64_t* header) {
  const int64_t fragments = header[SEMI_STRUCTURED_FRAGMENTS];
  const bool is_known = fragments == 1 || fragments == 2 || fragments == 4;
  if (!is_known || conv.warp_units != semi_structured_units(static_cast<int>(fragments))) {
    return {0, 0, 0, 0, "the launch is none that the kernel knows for this filter's row groups"};
  }
  return plan_condensed_launch(conv, header, semi_structured_step(static_cast<int>(fragments)));
}

// Run on CUDA's current device and `stream` (a cudaStream_t); `conv` holds all but what plan_semi_structured_launch
// fills. Returns why it could not be launched, or an empty text.
std::string launch_semi_structured_conv2d(CondensedConv conv, bool is_bfloat16, const int64_t* header, void* stream);

}  // namespace prunekit
