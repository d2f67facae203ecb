// Declares the remap kernel of the instruction set that PRUNEKIT_ISA names.
#pragma once

#include "lane_kernels.h"

namespace prunekit {
namespace PRUNEKIT_ISA {

void run_remap(const LaneRemap& remap);

}  // namespace PRUNEKIT_ISA
}  // namespace prunekit
