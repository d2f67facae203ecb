#include "instruction_sets.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <iterator>
#include <utility>

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

// setup.py compiles tile_kernel.cpp once per name in this list (best first) and passes the list on.
// Likewise for quad_kernels.cpp, with sets that add an instruction to one of them.
#if !defined(PRUNEKIT_COMPILED_SETS) || !defined(PRUNEKIT_QUAD_SETS)
#error "PRUNEKIT_COMPILED_SETS and PRUNEKIT_QUAD_SETS list the compiled instruction sets as X(name) X(name)"
#endif

namespace prunekit {

#define X(name)                                \
  namespace name {                             \
  extern const InstructionSet instruction_set; \
  extern const LaneKernels lane_kernels;       \
  }
PRUNEKIT_COMPILED_SETS
#undef X
#define X(name)                          \
  namespace name {                       \
  extern const QuadKernels quad_kernels; \
  }
PRUNEKIT_QUAD_SETS
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

namespace {

// Whether the processor has what a set adds to another of as many lanes.
bool has_quad_instruction(const std::string& name) {
#if defined(__x86_64__)
  if (name == "avx512vnni") {
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl");
  }
  if (name == "avxvnni") {
    return __builtin_cpu_supports("avxvnni");
  }
#elif defined(__aarch64__) && defined(__linux__)
  if (name == "dotprod") {
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
  }
#endif
  return std::any_of(
      compiled_instruction_sets().begin(), compiled_instruction_sets().end(),
      [&](const InstructionSet* set) { return name == set->name && is_supported(*set); });
}

}  // namespace

const QuadKernels& quad_kernels() {
#define X(name) {#name, &name::quad_kernels},
  static const std::pair<const char*, const QuadKernels*> sets[] = {PRUNEKIT_QUAD_SETS};
#undef X
  const int64_t lanes = lane_kernels().lanes;
  // Sets stand in order, the best first.
  const auto fits = [&](const auto& entry) {
    return entry.second->lanes == lanes && has_quad_instruction(entry.first);
  };
  return *std::find_if(std::begin(sets), std::end(sets), fits)->second;
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
