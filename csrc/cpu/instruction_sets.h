// Which compiled tile kernels this processor can run, and which one is in use.
#pragma once

#include <string>
#include <vector>

#include "lane_kernels.h"
#include "quad_kernels.h"
#include "tile_kernel.h"

namespace prunekit {

// Every set that was compiled in, best first.
const std::vector<const InstructionSet*>& compiled_instruction_sets();
bool is_supported(const InstructionSet& set);
// The set in use: the best supported one until `use_instruction_set` chose another.
const InstructionSet& instruction_set();
// Its lane kernels.
const LaneKernels& lane_kernels();
// The kernels of int8 for its lanes: with an instruction for them where the processor has one.
const QuadKernels& quad_kernels();
// Returns false when no compiled and supported set has this name.
bool use_instruction_set(const std::string& name);

}  // namespace prunekit
