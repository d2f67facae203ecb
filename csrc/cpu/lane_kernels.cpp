// The lane kernels, compiled once per instruction set (PRUNEKIT_ISA names it): see lane_kernels.h for the layout.
//
//   acc[row][vector] += value(row, tap) · x[tap's offset + vector]
//
// A tile keeps `rows` output channels × `vectors` pixel vectors in registers. Taps are sorted by which of the rows
// keep them, so a loaded input vector feeds every row that needs it, and each pattern is one branch-free loop.
//
// No per-ISA code: the compiler's vector extensions at VECTOR_BYTES.
#include "lane_kernels.h"

#include <utility>

#include "lane_activations.h"
#include "lane_channels.h"
#include "lane_remap.h"
#include "lane_vector.h"

namespace prunekit {
namespace PRUNEKIT_ISA {
namespace {

// Accumulators beside one loaded vector and the broadcast weights.
#if defined(PRUNEKIT_SHORT_TILES)  // for builds with sanitizers, whose instrumentation of every length takes minutes
constexpr int MAX_VECTORS[3] = {6, 3, 2};
#else
constexpr int MAX_VECTORS[3] = {WIDE_REGISTER_FILE ? 28 : 14, WIDE_REGISTER_FILE ? 14 : 6, WIDE_REGISTER_FILE ? 6 : 2};
#endif

template <int ROWS, int VECTORS>
struct Accumulators {
  vec row[ROWS][VECTORS];
};

ALWAYS_INLINE float widened(float weight) { return weight; }
ALWAYS_INLINE float widened(uint16_t bfloat16) {
  const uint32_t bits = static_cast<uint32_t>(bfloat16) << 16;
  float weight;
  __builtin_memcpy(&weight, &bits, sizeof weight);
  return weight;
}

// One tap: load each pixel vector once, feed the rows in PATTERN.
template <int PATTERN, int STEP, typename Weight, int ROWS, int VECTORS, int... V, int... R>
ALWAYS_INLINE void add_tap(
    Accumulators<ROWS, VECTORS>& acc, const float* pixels, const Weight*& values, std::integer_sequence<int, V...>,
    std::integer_sequence<int, R...>) {
  const float weight[ROWS] = {((PATTERN >> R) & 1 ? widened(*values++) : 0.0f)...};
  auto feed = [&](auto v) __attribute__((always_inline)) {
    constexpr int vector = decltype(v)::value;
    vec x = load(pixels + vector * STEP * LANES);
    if (PATTERN & (PATTERN - 1)) {
      KEEP_IN_REGISTER(x);  // else the compiler loads it again for every row
    }
    (..., ((PATTERN >> R) & 1 ? void(acc.row[R][vector] += x * weight[R]) : void()));
  };
  (..., feed(std::integral_constant<int, V>{}));
}

// A multiply-add takes a few cycles; with fewer sums than that in a pattern, neighboring taps add to sums of their own.
constexpr int MIN_CHAINS = 4;

template <int PATTERN, int STEP, typename Offset, typename Weight, int ROWS, int VECTORS>
ALWAYS_INLINE void add_pattern(
    Accumulators<ROWS, VECTORS>& acc, int count, const float* x, const Offset*& offsets, const Weight*& values) {
  auto add = [&](Accumulators<ROWS, VECTORS>& sums, int i) __attribute__((always_inline)) {
    const float* pixels = reinterpret_cast<const float*>(
        reinterpret_cast<const char*>(x) + static_cast<uint64_t>(offsets[i]) * (LANES * sizeof(float)));
    asm("" : "+r"(pixels));  // one address for all vectors; else the compiler computes one for each
    add_tap<PATTERN, STEP>(
        sums, pixels, values, std::make_integer_sequence<int, VECTORS>{}, std::make_integer_sequence<int, ROWS>{});
  };
  constexpr int SUMS = VECTORS * __builtin_popcount(PATTERN);
  int i = 0;
  if constexpr (SUMS < MIN_CHAINS) {
    constexpr int CHAINS = (MIN_CHAINS + SUMS - 1) / SUMS;
    Accumulators<ROWS, VECTORS> more[CHAINS - 1] = {};
    for (; i + CHAINS <= count; i += CHAINS) {
      add(acc, i);
#pragma GCC unroll 4
      for (int c = 1; c < CHAINS; ++c) {
        add(more[c - 1], i + c);
      }
    }
    for (const Accumulators<ROWS, VECTORS>& sums : more) {
      for (int r = 0; r < ROWS; ++r) {
        for (int v = 0; v < VECTORS; ++v) {
          acc.row[r][v] += sums.row[r][v];
        }
      }
    }
  }
  for (; i < count; ++i) {
    add(acc, i);
  }
  offsets += count;
}

template <int STEP, typename Offset, typename Weight, int ROWS, int VECTORS, int... P>
ALWAYS_INLINE void add_segment(
    Accumulators<ROWS, VECTORS>& acc, const LaneConvTile& tile, const int32_t* segment, const float* x,
    std::integer_sequence<int, P...>) {
  const Offset* offsets = static_cast<const Offset*>(tile.offsets) + segment[0];
  const Weight* values = static_cast<const Weight*>(tile.values) + segment[1];
  const uint16_t* counts = reinterpret_cast<const uint16_t*>(segment + 2);
  (..., add_pattern<P + 1, STEP>(acc, counts[P], x, offsets, values));
}

void activate_in_place(float* x, int64_t vectors, LaneActivation activation, float parameter) {
  with_activation(activation, [&](auto a) __attribute__((always_inline)) {
    for (int64_t v = 0; v < vectors; ++v) {
      store(x + v * LANES, Activate<decltype(a)::value>::of(load(x + v * LANES), parameter));
    }
  });
}

// Finish `rows` rows from `first_row` on, `vectors` vectors from `first` on, whose sums lie in `sums`. Out of line and
// through memory, so that the loops above have every register to themselves. The tile's fields are read before the
// loops: for all that the compiler knows, what is written might be any of them.
__attribute__((noinline)) void write_rows(
    const LaneConvTile& t, float* sums, int64_t first_row, int64_t rows, int64_t first, int64_t vectors) {
  rows = first_row + rows < t.rows_per_group ? rows : t.rows_per_group - first_row;
  float* y = t.y + first_row * t.y_channel + first * LANES;
  const int32_t* mask = t.mask + first * LANES;
  const int64_t y_channel = t.y_channel, residual_channel = t.residual_channel;
  const float before_parameter = t.before.parameter, after_parameter = t.after.parameter;
  const float* residual = t.residual ? t.residual + first_row * residual_channel + first * LANES : nullptr;
  LaneActivation before = t.before.activation;
  const LaneActivation after = t.after.activation;
  if (residual && after != LaneActivation::NONE && before != LaneActivation::NONE) {
    activate_in_place(sums, rows * vectors, before, before_parameter);  // rare, and a loop for each pair would be many
    before = LaneActivation::NONE;
  }
  with_choice(t.is_streamed, [&](auto is_streamed) __attribute__((always_inline)) {
    auto loop = [&](auto value_of) __attribute__((always_inline)) {
      const float* row_sums = sums;
      for (int64_t r = 0; r < rows; ++r, y += y_channel, residual += residual_channel) {
        for (int64_t v = 0; v < vectors; ++v, row_sums += LANES) {
          const vec value = masked(value_of(load(row_sums), residual + v * LANES), mask + v * LANES);
          if constexpr (decltype(is_streamed)::value) {
            stream(y + v * LANES, value);
          } else {
            store(y + v * LANES, value);
          }
        }
      }
    };
    if (residual && after != LaneActivation::NONE) {
      with_activation(after, [&](auto a) __attribute__((always_inline)) {
        loop([&](vec sum, const float* other) __attribute__((always_inline)) {
          return Activate<decltype(a)::value>::of(sum + load(other), after_parameter);
        });
      });
      return;
    }
    with_activation(before, [&](auto a) __attribute__((always_inline)) {
      auto activated = [&](vec sum) __attribute__((always_inline)) {
        return Activate<decltype(a)::value>::of(sum, before_parameter);
      };
      if (residual) {
        loop([&](vec sum, const float* other) __attribute__((always_inline)) { return activated(sum) + load(other); });
      } else {
        loop([&](vec sum, const float*) __attribute__((always_inline)) { return activated(sum); });
      }
    });
  });
}

template <int STEP, typename Offset, typename Weight, int ROWS, int VECTORS, int... R, int... V>
ALWAYS_INLINE void run_row_group(
    const LaneConvTile& tile, int64_t row_group, int64_t block, int64_t first, float* rest,
    std::integer_sequence<int, R...>, std::integer_sequence<int, V...>) {
  const int32_t* segment = tile.segments + (block * tile.num_row_groups + row_group) * tile.segment_words;
  const int64_t first_row = row_group * ROWS;
  Accumulators<ROWS, VECTORS> acc;
  auto each = [&](auto action) __attribute__((always_inline)) {
    auto each_row = [&](auto r) __attribute__((always_inline)) {
      (..., action(acc.row[decltype(r)::value][V], decltype(r)::value, V));
    };
    (..., each_row(std::integral_constant<int, R>{}));
  };
  if (block == 0) {
    each([&](vec& a, int r, int) __attribute__((always_inline)) {
      a = vec{} + (tile.bias && first_row + r < tile.rows_per_group ? tile.bias[first_row + r] : 0.0f);
    });
  } else {
    each([&](vec& a, int r, int v) __attribute__((always_inline)) { a = load(rest + (r * VECTORS + v) * LANES); });
  }
  const float* x = tile.x + block * tile.block_stride + first * STEP * LANES;
  add_segment<STEP, Offset, Weight>(acc, tile, segment, x, std::make_integer_sequence<int, (1 << ROWS) - 1>{});
  each([&](vec& a, int r, int v) __attribute__((always_inline)) { store(rest + (r * VECTORS + v) * LANES, a); });
  if (block == tile.num_channel_blocks - 1) {
    write_rows(tile, rest, first_row, ROWS, first, VECTORS);
  }
}

template <int STEP, typename Offset, typename Weight, int ROWS, int VECTORS>
void run_conv_tile(const LaneConvTile& tile) {
  // With one channel block no row's sums are needed again.
  const int64_t rest_step = tile.num_channel_blocks > 1 ? ROWS * VECTORS * LANES : 0;
  for (int64_t block = 0; block < tile.num_channel_blocks; ++block) {
    float* rest = tile.accumulators;
    for (int64_t row_group = tile.row_group_begin; row_group < tile.row_group_end; ++row_group, rest += rest_step) {
      for (int64_t repeat = 0; repeat < tile.repeats; ++repeat) {
        run_row_group<STEP, Offset, Weight, ROWS, VECTORS>(
            tile, row_group, block, repeat * VECTORS, rest, std::make_integer_sequence<int, ROWS>{},
            std::make_integer_sequence<int, VECTORS>{});
      }
    }
  }
}

template <int... CHAIN>
ALWAYS_INLINE void multiply_add(int64_t iterations, std::integer_sequence<int, CHAIN...>) {
  const vec factor = vec{} + 0.5f, term = vec{} + 1.0f;
  vec chain[] = {vec{} + static_cast<float>(CHAIN)...};  // all different, or the compiler computes one for all
  for (int64_t i = 0; i < iterations; ++i) {
    (..., (chain[CHAIN] = chain[CHAIN] * factor + term));
    (..., [&] { KEEP_IN_REGISTER(chain[CHAIN]); }());
  }
  [[maybe_unused]] volatile float sink = (0.0f + ... + chain[CHAIN][0]);  // so that nothing is left out
}

int64_t multiply_add(int64_t iterations) {
  constexpr int CHAINS = 12;  // enough to hide the latency of a multiply-add
  multiply_add(iterations, std::make_integer_sequence<int, CHAINS>{});
  return iterations * CHAINS * LANES * 2;
}

template <int... CHAIN>
ALWAYS_INLINE void multiply_add_from(const float* x, int64_t vectors, std::integer_sequence<int, CHAIN...>) {
  const vec factor = vec{} + 0.5f;
  vec chain[] = {vec{} + static_cast<float>(CHAIN)...};
  for (int64_t v = 0; v + int64_t{sizeof...(CHAIN)} <= vectors; v += sizeof...(CHAIN)) {
    (..., (chain[CHAIN] += load(x + (v + CHAIN) * LANES) * factor));
  }
  [[maybe_unused]] volatile float sink = (0.0f + ... + chain[CHAIN][0]);
}

void multiply_add_from(const float* x, int64_t vectors) {
  multiply_add_from(x, vectors, std::make_integer_sequence<int, 12>{});
}

template <int STEP, typename Offset, typename Weight, int ROWS, typename Sequence>
struct Table;
template <int STEP, typename Offset, typename Weight, int ROWS, int... V>
struct Table<STEP, Offset, Weight, ROWS, std::integer_sequence<int, V...>> {
  static constexpr LaneConvKernel kernels[] = {run_conv_tile<STEP, Offset, Weight, ROWS, V + 1>...};
};

template <int STEP, typename Offset, typename Weight, int ROWS>
constexpr const LaneConvKernel* table() {
  return Table<STEP, Offset, Weight, ROWS, std::make_integer_sequence<int, MAX_VECTORS[ROWS / 2]>>::kernels;
}

// In the order of LaneReading.
#define READINGS(Weight, rows) \
  {table<1, uint16_t, Weight, rows>(), table<1, uint32_t, Weight, rows>(), table<2, uint32_t, Weight, rows>()}
#define ROW_COUNTS(Weight) {READINGS(Weight, 1), READINGS(Weight, 2), READINGS(Weight, 4)}

}  // namespace

extern const LaneKernels lane_kernels;
const LaneKernels lane_kernels = {
    LANES,
    {MAX_VECTORS[0], MAX_VECTORS[1], MAX_VECTORS[2]},
    {ROW_COUNTS(float), ROW_COUNTS(uint16_t)},
    run_elementwise,
    run_pool,
    run_mean,
    fill_halo,
    run_shifts,
    multiply_add,
    multiply_add_from,
    run_remap};

}  // namespace PRUNEKIT_ISA
}  // namespace prunekit
