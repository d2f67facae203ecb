// Kernels that treat each channel by itself, compiled once per instruction set.
#pragma once

#include "lane_kernels.h"

namespace prunekit {
namespace PRUNEKIT_ISA {

void run_elementwise(const LaneElementwise& e);
void run_pool(const LanePool& pool);
void run_mean(const float* x, int64_t vectors, float scale, float* y);
void fill_halo(float* plane, int64_t m, int64_t front, int64_t back, float fill);
void run_shifts(const LaneShifts& s);

}  // namespace PRUNEKIT_ISA
}  // namespace prunekit
