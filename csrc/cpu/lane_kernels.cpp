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

ALWAYS_INLINE vec masked(vec v, const int32_t* mask) {
  return reinterpret_cast<vec>(reinterpret_cast<ivec>(v) & *reinterpret_cast<const ivec*>(mask));
}
ALWAYS_INLINE vec minimum(vec a, float b) { return a > b ? vec{} + b : a; }  // nan stays nan
ALWAYS_INLINE vec maximum(vec a, float b) { return a < b ? vec{} + b : a; }

// e^x by 2^n · e^r with |r| <= ln(2) / 2: a Taylor polynomial of degree 7, within 2 ulp; finite for every finite x.
ALWAYS_INLINE vec exponential(vec x) {
  x = minimum(maximum(x, -87.3f), 88.3f);
  const vec shifted = x * 1.44269504f + 12582912.0f;  // 1.5 · 2^23: the sum's low bits hold round(x / ln 2)
  const vec n = shifted - 12582912.0f;
  const vec r = x - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts
  vec p = vec{} + 1.0f / 5040;
  for (const float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    p = p * r + c;
  }
  const ivec power = (reinterpret_cast<ivec>(shifted) << 23) + 0x3f800000;
  return p * reinterpret_cast<vec>(power);
}

template <LaneActivation ACTIVATION>
ALWAYS_INLINE vec activate(vec v, float negative_slope) {
  switch (ACTIVATION) {
    case LaneActivation::LEAKY_RELU:
      return v < 0.0f ? v * negative_slope : v;
    case LaneActivation::RELU:
      return v < 0.0f ? vec{} : v;
    case LaneActivation::RELU6:
      return minimum(maximum(v, 0.0f), 6.0f);
    case LaneActivation::SILU:
      return v / (1.0f + exponential(-v));
    case LaneActivation::HARDSWISH:
      return v * minimum(maximum(v + 3.0f, 0.0f), 6.0f) / 6.0f;
    case LaneActivation::NONE:
      break;
  }
  return v;
}

// Call f with the activation as a constant, so that a loop inside f has no choice to make.
template <typename F>
ALWAYS_INLINE void with_activation(LaneActivation activation, const F& f) {
  using A = LaneActivation;
  switch (activation) {
    case A::LEAKY_RELU:
      return f(std::integral_constant<A, A::LEAKY_RELU>{});
    case A::RELU:
      return f(std::integral_constant<A, A::RELU>{});
    case A::RELU6:
      return f(std::integral_constant<A, A::RELU6>{});
    case A::SILU:
      return f(std::integral_constant<A, A::SILU>{});
    case A::HARDSWISH:
      return f(std::integral_constant<A, A::HARDSWISH>{});
    case A::NONE:
      return f(std::integral_constant<A, A::NONE>{});
  }
}

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

// A multiply-add takes a few cycles; with fewer sums than that in a pattern, neighbouring taps add to sums of their own.
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

// Call f with the choice as a constant.
template <typename F>
ALWAYS_INLINE void with_choice(bool choice, const F& f) {
  if (choice) {
    f(std::true_type{});
  } else {
    f(std::false_type{});
  }
}

// Finish `rows` rows from `first_row` on, `vectors` vectors from `first` on, whose sums lie in `sums`. Out of line and
// through memory, so that the loops above have every register to themselves. The tile's fields are read before the
// loops: for all that the compiler knows, what is written might be any of them.
__attribute__((noinline)) void write_rows(
    const LaneConvTile& t, const float* sums, int64_t first_row, int64_t rows, int64_t first, int64_t vectors) {
  rows = first_row + rows < t.rows_per_group ? rows : t.rows_per_group - first_row;
  float* y = t.y + first_row * t.y_channel + first * LANES;
  const int32_t* mask = t.mask + first * LANES;
  const int64_t y_channel = t.y_channel, residual_channel = t.residual_channel;
  const float before_slope = t.before.negative_slope, after_slope = t.after.negative_slope;
  const LaneActivation after_activation = t.after.activation;
  const float* residual = t.residual ? t.residual + first_row * residual_channel + first * LANES : nullptr;
  with_choice(t.is_streamed, [&](auto is_streamed) __attribute__((always_inline)) {
    auto put = [](float* target, vec value, const int32_t* mask) __attribute__((always_inline)) {
      if constexpr (decltype(is_streamed)::value) {
        stream(target, masked(value, mask));
      } else {
        store(target, masked(value, mask));
      }
    };
    with_activation(t.before.activation, [&](auto before) __attribute__((always_inline)) {
      constexpr LaneActivation BEFORE = decltype(before)::value;
      if (!residual) {
        for (int64_t r = 0; r < rows; ++r, y += y_channel) {
          for (int64_t v = 0; v < vectors; ++v, sums += LANES) {
            put(y + v * LANES, activate<BEFORE>(load(sums), before_slope), mask + v * LANES);
          }
        }
        return;
      }
      with_activation(after_activation, [&](auto after) __attribute__((always_inline)) {
        for (int64_t r = 0; r < rows; ++r, y += y_channel, residual += residual_channel) {
          for (int64_t v = 0; v < vectors; ++v, sums += LANES) {
            const vec value = activate<BEFORE>(load(sums), before_slope) + load(residual + v * LANES);
            put(y + v * LANES, activate<decltype(after)::value>(value, after_slope), mask + v * LANES);
          }
        }
      });
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

// The mean of a plane, whose lanes that are no pixels are zero, as the one pixel of another plane.
void run_mean(const float* x, int64_t vectors, float scale, float* y) {
  vec sums[4] = {};
  for (int64_t v = 0; v < vectors; ++v) {
    sums[v % 4] += load(x + v * LANES);
  }
  const vec sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float total = 0.0f;
  for (int l = 0; l < LANES; ++l) {
    total += sum[l];
  }
  vec pixel = {};
  pixel[0] = total * scale;
  store(y, pixel);
}

void run_elementwise(const LaneElementwise& e) {
  const float *x = e.x, *other = e.other;
  float* y = e.y;
  const int32_t* mask = e.mask;
  const int64_t vectors = e.vectors;
  const float scale = e.scale, shift = e.shift, slope = e.epilogue.negative_slope;
  with_activation(e.epilogue.activation, [&](auto activation) __attribute__((always_inline)) {
    with_choice(other != nullptr, [&](auto has_other) __attribute__((always_inline)) {
      for (int64_t v = 0; v < vectors; ++v) {
        vec value = load(x + v * LANES);
        value = decltype(has_other)::value ? value + load(other + v * LANES) : value * scale + shift;
        value = activate<decltype(activation)::value>(value, slope);
        store(y + v * LANES, mask ? masked(value, mask + v * LANES) : value);
      }
    });
  });
}

void run_pool(const LanePool& pool) {
  const float* x = pool.x;
  float* y = pool.y;
  const int32_t *taps = pool.taps, *mask = pool.mask;
  const int64_t vectors = pool.vectors, num_taps = pool.num_taps, step = pool.step;
  const float scale = pool.scale;
  with_choice(pool.is_max, [&](auto is_max) __attribute__((always_inline)) {
    for (int64_t v = 0; v < vectors; ++v) {
      vec value = load(x + (taps[0] + v * step) * LANES);
      for (int64_t t = 1; t < num_taps; ++t) {
        const vec next = load(x + (taps[t] + v * step) * LANES);
        if constexpr (decltype(is_max)::value) {
          value = (next > value) | (next != next) ? next : value;  // a nan wins, as in torch
        } else {
          value += next;
        }
      }
      store(y + v * LANES, masked(decltype(is_max)::value ? value : value * scale, mask + v * LANES));
    }
  });
}

// The vectors [begin, end) of a plane whose pixels are those of `source`, `distance` lanes further on; 0 beyond the
// last and before the first lane.
ALWAYS_INLINE void copy_shifted(const float* source, float* target, int64_t count, int64_t distance) {
  ivec index;
  for (int l = 0; l < LANES; ++l) {
    index[l] = l + distance >= 0 && l + distance < LANES ? static_cast<int32_t>(l + distance) : LANES;
  }
  for (int64_t j = 0; j < count; ++j) {
    store(target + j * LANES, shuffle(load(source + j * LANES), vec{}, index));
  }
}

void fill_halo(float* plane, int64_t m, int64_t front, int64_t back) {
  auto fill = [&](int64_t begin, int64_t end) __attribute__((always_inline)) {
    while (begin < end) {
      const int64_t chunk = begin < 0 ? -((m - 1 - begin) / m) : begin / m;
      const int64_t stop = (chunk + 1) * m < end ? (chunk + 1) * m : end;
      const int64_t distance = chunk < -LANES ? -LANES : chunk > LANES ? LANES : chunk;
      copy_shifted(plane + (begin - chunk * m) * LANES, plane + begin * LANES, stop - begin, distance);
      begin = stop;
    }
  };
  fill(-front, 0);
  fill(m, m + back);
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
  { table<1, uint16_t, Weight, rows>(), table<1, uint32_t, Weight, rows>(), table<2, uint32_t, Weight, rows>() }
#define ROW_COUNTS(Weight) { READINGS(Weight, 1), READINGS(Weight, 2), READINGS(Weight, 4) }

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
    multiply_add,
    multiply_add_from,
    run_remap};

}  // namespace PRUNEKIT_ISA
}  // namespace prunekit
