#include "instruction_sets.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <iterator>
#include <utility>

// setup.py compiles tile_kernel.cpp once per name in this list (best first) and passes the list on.
#ifndef PRUNEKIT_COMPILED_SETS
#error "PRUNEKIT_COMPILED_SETS lists the compiled instruction sets as X(name) X(name)"
#endif

namespace prunekit {

#define X(name)                                \
  namespace name {                             \
  extern const InstructionSet instruction_set; \
  extern const LaneKernels lane_kernels;       \
  }
PRUNEKIT_COMPILED_SETS
#undef X

const std::vector<const InstructionSet*>& compiled_instruction_sets() {
#define X(name) &name::instruction_set,
  static const std::vector<const InstructionSet*> sets = {PRUNEKIT_COMPILED_SETS};
#undef X
  return sets;
}

bool is_supported(const InstructionSet& set) {
#if defined(__x86_64__)
  if (!std::strcmp(set.name, "avx512")) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
  }
  if (!std::strcmp(set.name, "avx2")) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  }
#endif
  return !std::strcmp(set.name, "baseline");
}

namespace {

std::atomic<const InstructionSet*>& current() {
  static std::atomic<const InstructionSet*> set = [] {
    for (const InstructionSet* candidate : compiled_instruction_sets()) {
      if (is_supported(*candidate)) {
        return candidate;
      }
    }
    return compiled_instruction_sets().back();  // the baseline, which every processor of the platform runs
  }();
  return set;
}

}  // namespace

const InstructionSet& instruction_set() { return *current().load(std::memory_order_relaxed); }

const LaneKernels& lane_kernels() {
#define X(name) {&name::instruction_set, &name::lane_kernels},
  static const std::pair<const InstructionSet*, const LaneKernels*> sets[] = {PRUNEKIT_COMPILED_SETS};
#undef X
  const auto is_current = [](const auto& entry) { return entry.first == &instruction_set(); };
  return *std::find_if(std::begin(sets), std::end(sets), is_current)->second;
}

bool use_instruction_set(const std::string& name) {
  for (const InstructionSet* candidate : compiled_instruction_sets()) {
    if (name == candidate->name && is_supported(*candidate)) {
      current().store(candidate, std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

}  // namespace prunekit
