// Masked convolution in float16 and bfloat16 on tensor cores, on a fragment filter (condensed/filter.h).
//
//   y[n, k, p, q] = residual + activation(bias[k] + Σ_kept weight[k, c, r, s] · x[n, c, p·stride + r·dilation − padding, …])
//   or, where the activation comes last, activation(residual + bias[k] + Σ …)
//
// Sums are float32. A row group's step is 16 rows × 16 columns of weights; it multiplies, for 8 pixels side by side, the
// inputs at its 16 taps. Such a unit of 8 inputs is 16 bytes of shared memory at any tap: a block stages the haloed lines
// of a chunk of channels once for each column of the kernel, moved by that column and already at the stride, so that
// the loads of matrices gather them with nothing but an address for each tap.
//
// A block stages one chunk's inputs and its row groups' steps, two buffers in turn. Its warps share them: pixel warps ×
// row groups × slices, a slice being every so many-th step of each run; slices are added at the end in a fixed order.
// No atomics: the same bits on every run.
//
// A dropped weight contributes nothing: where a chunk of a block's inputs holds inf or nan, its kept weights are
// multiplied one by one. Kept weights are finite.
#pragma once

#include "condensed/stage.cuh"
#include "epilogue.cuh"
#include "tensor_core.cuh"

namespace prunekit {

constexpr uint16_t DROPPED = 0x8000;  // -0.0

// A unit's place in the block's tile. Units past the tile's last are computed from the first one's inputs and dropped.
struct UnitPlace {
  int line, column;

  static __device__ __forceinline__ UnitPlace of(const CondensedConv& conv, int unit) {
    return {unit / conv.units_w, unit % conv.units_w};
  }

  __device__ __forceinline__ void step(const CondensedConv& conv) {
    const bool is_last = ++column == conv.units_w;
    line += is_last;
    column = is_last ? 0 : column;
  }

  // Where it begins in a plane, in bytes.
  __device__ __forceinline__ int offset(const CondensedConv& conv) const {
    return line < conv.tile_h ? 16 * (line * conv.stride_h * conv.units_w + column) : 0;
  }
};

// Steps of 16 dense columns: how a warp multiplies them, two units a load.
struct CondensedSteps {
  static constexpr StepLayout LAYOUT = CONDENSED_STEP;
  static constexpr int SIZE = LAYOUT.size();
  static constexpr int UNITS_A_LOAD = 2;

  // One slice of a run's steps.
  template <bool IS_BFLOAT16, int UNITS>
  static __device__ __forceinline__ void run(
      const CondensedConv& conv, const CondensedChunk& here, int row_group, int first, int count,
      const int (&offset)[UNITS / 2], float (&sum)[1][UNITS][4]) {
    const int4* steps = here.steps + row_group * conv.longest * 32;
    const int32_t* taps = here.taps + row_group * conv.longest * STEP_COLUMNS;
    const int lane = threadIdx.x % 32;
    const device::SharedAddress base = device::shared_address(here.inputs);
    for (int step = first; step < count; step += conv.slices) {
      const int4 weights = steps[step * 32 + lane];
      const device::SharedAddress tap = base + taps[step * STEP_COLUMNS + lane % STEP_COLUMNS];
#pragma unroll
      for (int pair = 0; pair < UNITS / 2; ++pair) {
        uint32_t input[4];
        device::load_matrices_transposed(input, tap + offset[pair]);
        device::multiply_add<IS_BFLOAT16>(sum[0][2 * pair], weights, input[0], input[1]);
        device::multiply_add<IS_BFLOAT16>(sum[0][2 * pair + 1], weights, input[2], input[3]);
      }
    }
  }

  // The same, weight by weight and kept ones only: for inputs with inf and nan.
  template <bool IS_BFLOAT16, int UNITS>
  static __device__ __forceinline__ void run_one_by_one(
      const CondensedConv& conv, const CondensedChunk& here, int row_group, int first, int count,
      const UnitPlace& first_place, float (&sum)[1][UNITS][4]) {
    const int4* steps = here.steps + row_group * conv.longest * 32;
    const int32_t* taps = here.taps + row_group * conv.longest * STEP_COLUMNS;
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int step = first; step < count; step += conv.slices) {
#pragma unroll 1
      for (int column = 0; column < STEP_COLUMNS; ++column) {
        const int holder = lane / 4 * 4 + column % 8 / 2, half = column / 8 * 4 + column % 2;
        const uint16_t* weights = reinterpret_cast<const uint16_t*>(steps + step * 32 + holder) + half;
        const unsigned char* tap =
            reinterpret_cast<const unsigned char*>(here.inputs) + taps[step * STEP_COLUMNS + column];
        UnitPlace place = first_place;
#pragma unroll
        for (int unit = 0; unit < UNITS; ++unit, place.step(conv)) {
          const uint16_t* from = reinterpret_cast<const uint16_t*>(tap + place.offset(conv));
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const uint16_t weight = weights[i / 2 * 2], input = from[lane % 4 * 2 + i % 2];
            if (weight != DROPPED) {
              sum[0][unit][i] += device::widen<IS_BFLOAT16>(weight) * device::widen<IS_BFLOAT16>(input);
            }
          }
        }
      }
    }
  }
};

// Add the slices' sums into slice 0's, through shared memory, in the order of slices.
template <int FRAGMENTS, int UNITS>
__device__ __forceinline__ void add_slices(
    const CondensedConv& conv, int slice, int column, float* shared, float (&sum)[FRAGMENTS][UNITS][4]) {
  constexpr int SUMS = FRAGMENTS * UNITS * 4;
  const int columns = 32 * conv.pixel_warps * conv.block_row_groups;
  if (slice > 0) {
#pragma unroll
    for (int i = 0; i < SUMS; ++i) {
      shared[((slice - 1) * SUMS + i) * columns + column] = sum[i / 4 / UNITS][i / 4 % UNITS][i % 4];
    }
  }
  __syncthreads();
  if (slice == 0) {
    for (int other = 1; other < conv.slices; ++other) {
#pragma unroll
      for (int i = 0; i < SUMS; ++i) {
        sum[i / 4 / UNITS][i / 4 % UNITS][i % 4] += shared[((other - 1) * SUMS + i) * columns + column];
      }
    }
  }
}

// Bias, activation, residual, or these two the other way round; then the pixels that exist are stored. `group` numbers
// all fragments' rows.
template <bool IS_BFLOAT16, int UNITS>
__device__ __forceinline__ void store(
    const CondensedConv& conv, const CondensedBlock& block, int group, UnitPlace place, const float (&sum)[UNITS][4]) {
  const int lane = threadIdx.x % 32;
  const int32_t* rows = conv.rows + group * FRAGMENT_ROWS + lane / 4;
  const int row[2] = {__ldg(rows), __ldg(rows + 8)};
  float bias[2] = {};
  if (conv.bias) {
    bias[0] = row[0] < 0 ? 0.0f : device::widen<IS_BFLOAT16>(__ldg(conv.bias + row[0]));
    bias[1] = row[1] < 0 ? 0.0f : device::widen<IS_BFLOAT16>(__ldg(conv.bias + row[1]));
  }
#pragma unroll
  for (int unit = 0; unit < UNITS; ++unit, place.step(conv)) {
    const int p = block.first_p + place.line;
    const int first_q = block.first_q + place.column * UNIT_PIXELS + lane % 4 * 2;
    const bool has_line = place.line < conv.tile_h && p < conv.p;
    const int64_t line = block.image * conv.y_stride_n + p * conv.y_stride_p;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int k = row[i / 2], q = first_q + i % 2;
      if (has_line && k >= 0 && q < conv.q) {
        const int64_t at = line + k * conv.y_stride_k + q * conv.y_stride_q;
        float value = activate(conv, BEFORE_RESIDUAL, sum[unit][i] + bias[i / 2]);
        if (conv.residual) {
          value += device::widen<IS_BFLOAT16>(__ldg(conv.residual + at));
        }
        conv.y[at] = device::narrow<IS_BFLOAT16>(activate(conv, AFTER_RESIDUAL, value));
      }
    }
  }
}

// What every thread does.
template <typename Steps, bool IS_BFLOAT16, int SHIFTS, int STRIDE, int UNITS>
__device__ __forceinline__ void convolve(const CondensedConv& conv, unsigned char* shared) {
  constexpr int FRAGMENTS = Steps::LAYOUT.fragments, UNITS_A_LOAD = Steps::UNITS_A_LOAD;
  const int warp = threadIdx.x / 32;
  const int first_unit = warp % conv.pixel_warps * UNITS;
  const UnitPlace first_place = UnitPlace::of(conv, first_unit);
  const int row_group = warp / conv.pixel_warps % conv.block_row_groups;
  const int slice = warp / conv.pixel_warps / conv.block_row_groups;
  const CondensedBlock block = find_block(conv, blockIdx.x, blockIdx.y);
  const InputShare share = InputShare::of(conv);
  const bool has_rows = block.first_row_group + row_group < conv.num_row_groups;
  // Where a load brings two units, lanes 16 and up name the rows of the second.
  UnitPlace place = UnitPlace::of(conv, first_unit + threadIdx.x % 32 * UNITS_A_LOAD / 32);
  int offset[UNITS / UNITS_A_LOAD];
#pragma unroll
  for (int unit = 0; unit < UNITS; ++unit, place.step(conv)) {
    if (unit % UNITS_A_LOAD == 0) {
      offset[unit / UNITS_A_LOAD] = place.offset(conv);
    }
  }

  float sum[FRAGMENTS][UNITS][4] = {};
  const auto stage = [&](int chunk) {
    const CondensedChunk to = find_chunk<Steps>(conv, shared, chunk % conv.buffers);
    stage_steps<Steps>(conv, block, chunk, to);
    device::commit_copies();
    return stage_inputs<IS_BFLOAT16, SHIFTS, STRIDE>(conv, block, share, chunk, to.inputs);
  };
  bool has_special = conv.buffers == 2 && stage(0);
  for (int chunk = 0; chunk < conv.num_chunks; ++chunk) {
    const int ahead = chunk + conv.buffers - 1;
    const bool is_staged = ahead < conv.num_chunks;
    const bool has_special_ahead = is_staged && stage(ahead);
    if (is_staged && ahead > chunk) {
      device::wait_for_copies<1>();
    } else {
      device::wait_for_copies<0>();
    }
    const bool is_special = __syncthreads_or(ahead > chunk ? has_special : has_special_ahead);
    if (has_rows) {
      const CondensedChunk here = find_chunk<Steps>(conv, shared, chunk % conv.buffers);
      const int32_t* start = run_start(conv, block, row_group, chunk);
      const int count = start[1] - start[0];
      if (is_special) {
        Steps::template run_one_by_one<IS_BFLOAT16>(conv, here, row_group, slice, count, first_place, sum);
      } else {
        Steps::template run<IS_BFLOAT16>(conv, here, row_group, slice, count, offset, sum);
      }
    }
    __syncthreads();
    has_special = has_special_ahead;
  }
  if (conv.slices > 1) {
    const int column = threadIdx.x % 32 + 32 * (row_group * conv.pixel_warps + warp % conv.pixel_warps);
    add_slices(conv, slice, column, reinterpret_cast<float*>(shared), sum);
  }
  if (slice == 0 && has_rows) {
    const int group = block.group * conv.num_row_groups + block.first_row_group + row_group;
#pragma unroll
    for (int fragment = 0; fragment < FRAGMENTS; ++fragment) {
      // Found anew, so that no registers keep it through the steps.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 800
      // There dense steps would spill for it.
      const UnitPlace first = UNITS_A_LOAD == 2 ? first_place : UnitPlace::of(conv, device::opaque(first_unit));
#else
      const UnitPlace first = UnitPlace::of(conv, device::opaque(first_unit));
#endif
      store<IS_BFLOAT16>(conv, block, group * FRAGMENTS + fragment, first, sum[fragment]);
    }
  }
}

// Blocks of a multiprocessor that registers must allow; on 9.0 the third would spill at stride 2.
template <int STRIDE, int UNITS>
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr int CONDENSED_BLOCKS = UNITS == 4 && STRIDE != 2 ? 3 : 2;
#else
constexpr int CONDENSED_BLOCKS = UNITS == 4 ? 3 : 2;
#endif

template <bool IS_BFLOAT16, int SHIFTS, int STRIDE, int UNITS>
__global__ void __launch_bounds__(32 * MAX_CONDENSED_WARPS, CONDENSED_BLOCKS<STRIDE, UNITS>)
    condensed_conv2d(const CondensedConv conv) {
  if constexpr (device::HAS_TENSOR_CORES<IS_BFLOAT16>) {
    PRUNEKIT_DYNAMIC_SHARED(shared);
    convolve<CondensedSteps, IS_BFLOAT16, SHIFTS, STRIDE, UNITS>(conv, shared);
  }
}

// Call visit(is_bfloat16, shifts, stride) with constants of this dtype and window.
template <typename Visit>
void visit_window(bool is_bfloat16, InputWindow window, const Visit& visit) {
  const auto with_dtype = [&](auto dtype) {
    if (window.shifts == 3 && window.stride == 1) {
      visit(dtype, std::integral_constant<int, 3>{}, std::integral_constant<int, 1>{});
    } else if (window.shifts == 3) {
      visit(dtype, std::integral_constant<int, 3>{}, std::integral_constant<int, 2>{});
    } else {
      visit(dtype, std::integral_constant<int, 1>{}, std::integral_constant<int, 0>{});
    }
  };
  is_bfloat16 ? with_dtype(std::true_type{}) : with_dtype(std::false_type{});
}

// Call visit(kernel) with the instantiation for this dtype, window and cut.
template <typename Visit>
void visit_condensed_kernel(bool is_bfloat16, InputWindow window, int warp_units, const Visit& visit) {
  visit_window(is_bfloat16, window, [&](auto dtype, auto shifts, auto stride) {
    constexpr bool IS_BFLOAT16 = decltype(dtype)::value;
    constexpr int SHIFTS = decltype(shifts)::value, STRIDE = decltype(stride)::value;
    warp_units == 8 ? visit(condensed_conv2d<IS_BFLOAT16, SHIFTS, STRIDE, 8>)
                    : visit(condensed_conv2d<IS_BFLOAT16, SHIFTS, STRIDE, 4>);
  });
}

}  // namespace prunekit
