// Masked convolution in float16 and bfloat16 on sparse tensor cores, on a semi-structured filter
// (semi_structured_filter.h).
//
//   y[n, k, p, q] = residual + activation(bias[k] + Σ_kept weight[k, c, r, s] · x[n, c, p·stride + r·dilation − padding, …])
//   or, where the activation comes last, activation(residual + bias[k] + Σ …)
//
// All but the steps is the dense tensor cores' kernel (condensed_conv2d.cuh). A step is 32 columns, of which each row
// stores two of four: one load brings the inputs of a unit at all 32 taps, and mma.sp multiplies them by 16 rows in the
// time of 16 dense columns. Fragments of the same columns share the loads.
#pragma once

#include "condensed/conv2d.cuh"
#include "semi_structured/launch.h"

namespace prunekit {

template <int FRAGMENTS>
struct SemiStructuredSteps {
  static constexpr StepLayout LAYOUT = semi_structured_step(FRAGMENTS);
  static constexpr int SIZE = LAYOUT.size();
  static constexpr int UNITS_A_LOAD = 1;
  static constexpr int WARP_UNITS = semi_structured_units(FRAGMENTS);

  // A fragment's words of metadata in a step.
  static constexpr int WORDS = 16;

  // One slice of a run's steps.
  template <bool IS_BFLOAT16, int UNITS>
  static __device__ __forceinline__ void run(
      const CondensedConv& conv, const CondensedChunk& here, int row_group, int first, int count,
      const int (&offset)[UNITS], float (&sum)[FRAGMENTS][UNITS][4]) {
    const int lane = threadIdx.x % 32;
    const int4* weights = here.steps + row_group * conv.longest * FRAGMENTS * 32 + lane;
    const int32_t* taps = here.taps + row_group * conv.longest * SPARSE_STEP_COLUMNS + lane;
    // Of four lanes the first two hold a fragment's metadata, and the others that of the next, if there is one.
    const int32_t* metadata = reinterpret_cast<const int32_t*>(here.metadata) +
        row_group * conv.longest * FRAGMENTS * WORDS + lane / 4 * 2 + lane % 2 +
        (FRAGMENTS > 1 ? lane % 4 / 2 * WORDS : 0);
    const device::SharedAddress base = device::shared_address(here.inputs);
    for (int step = first; step < count; step += conv.slices) {
      const device::SharedAddress tap = base + taps[step * SPARSE_STEP_COLUMNS];
      int4 weight[FRAGMENTS];
      uint32_t places[FRAGMENTS];
#pragma unroll
      for (int f = 0; f < FRAGMENTS; ++f) {
        weight[f] = weights[(step * FRAGMENTS + f) * 32];
        places[f] = f % 2 ? places[f - 1] : metadata[(step * FRAGMENTS + f) * WORDS];
      }
#pragma unroll
      for (int unit = 0; unit < UNITS; ++unit) {
        uint32_t input[4];
        device::load_matrices_transposed(input, tap + offset[unit]);
#pragma unroll
        for (int f = 0; f < FRAGMENTS; ++f) {
          if (f % 2 == 0) {
            device::multiply_add_sparse<IS_BFLOAT16, 0>(sum[f][unit], weight[f], input, places[f]);
          } else {
            device::multiply_add_sparse<IS_BFLOAT16, 1>(sum[f][unit], weight[f], input, places[f]);
          }
        }
      }
    }
  }

  // The same, weight by weight and kept ones only: for inputs with inf and nan.
  template <bool IS_BFLOAT16, int UNITS>
  static __device__ __forceinline__ void run_one_by_one(
      const CondensedConv& conv, const CondensedChunk& here, int row_group, int first, int count,
      const UnitPlace& first_place, float (&sum)[FRAGMENTS][UNITS][4]) {
    const int lane = threadIdx.x % 32;
    const int32_t* taps = here.taps + row_group * conv.longest * SPARSE_STEP_COLUMNS;
    const int4* weights = here.steps + row_group * conv.longest * FRAGMENTS * 32 + lane / 4 * 4;
    const int32_t* metadata =
        reinterpret_cast<const int32_t*>(here.metadata) + row_group * conv.longest * FRAGMENTS * WORDS + lane / 4 * 2;
#pragma unroll 1
    for (int step = first; step < count; step += conv.slices) {
#pragma unroll
      for (int f = 0; f < FRAGMENTS; ++f) {
#pragma unroll 1
        for (int stored = 0; stored < SPARSE_STEP_COLUMNS / 2; ++stored) {
          const int quad = stored / 2, place = 4 * (quad % 4) + stored % 2 * 2, half = quad / 4 * 4 + stored % 2;
          const int at = step * FRAGMENTS + f;
          const uint16_t* pair = reinterpret_cast<const uint16_t*>(weights + at * 32 + quad % 4) + half;
          const int32_t word = metadata[at * WORDS + quad / 4];
#pragma unroll
          for (int row = 0; row < 2; ++row) {
            const uint16_t weight = pair[2 * row];
            if (weight != DROPPED) {
              const int column = 4 * quad + (word >> (16 * row + place) & 3);
              const unsigned char* tap =
                  reinterpret_cast<const unsigned char*>(here.inputs) + taps[step * SPARSE_STEP_COLUMNS + column];
              UnitPlace unit_place = first_place;
#pragma unroll
              for (int unit = 0; unit < UNITS; ++unit, unit_place.step(conv)) {
                const uint16_t* from = reinterpret_cast<const uint16_t*>(tap + unit_place.offset(conv)) + lane % 4 * 2;
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                  sum[f][unit][2 * row + i] += device::widen<IS_BFLOAT16>(weight) * device::widen<IS_BFLOAT16>(from[i]);
                }
              }
            }
          }
        }
      }
    }
  }
};

template <bool IS_BFLOAT16, int SHIFTS, int STRIDE, int FRAGMENTS>
__global__ void __launch_bounds__(32 * MAX_CONDENSED_WARPS, FRAGMENTS == 4 ? 1 : 2)
    semi_structured_conv2d(const CondensedConv conv) {
  if constexpr (device::HAS_SPARSE_TENSOR_CORES) {
    PRUNEKIT_DYNAMIC_SHARED(shared);
    using Steps = SemiStructuredSteps<FRAGMENTS>;
    convolve<Steps, IS_BFLOAT16, SHIFTS, STRIDE, Steps::WARP_UNITS>(conv, shared);
  }
}

// Call visit(kernel) with the instantiation for this dtype, window and filter.
template <typename Visit>
void visit_semi_structured_kernel(bool is_bfloat16, InputWindow window, int64_t fragments, const Visit& visit) {
  visit_window(is_bfloat16, window, [&](auto dtype, auto shifts, auto stride) {
    constexpr bool IS_BFLOAT16 = decltype(dtype)::value;
    constexpr int SHIFTS = decltype(shifts)::value, STRIDE = decltype(stride)::value;
    if (fragments == 4) {
      visit(semi_structured_conv2d<IS_BFLOAT16, SHIFTS, STRIDE, 4>);
    } else {
      fragments == 2 ? visit(semi_structured_conv2d<IS_BFLOAT16, SHIFTS, STRIDE, 2>)
                     : visit(semi_structured_conv2d<IS_BFLOAT16, SHIFTS, STRIDE, 1>);
    }
  });
}

}  // namespace prunekit
