// The kernels of int8, compiled once per instruction set with or without an instruction for them (quad_dot.h).
//
//   acc[row][vector] += Σ over four channels: weight(row, tap, channel) · x[tap's offset + vector](channel)
//
// Loops are those of lane_kernels.cpp: taps sorted by which of four output channels keep any of a quad's weights, a
// branch-free loop a pattern. Four output channels are one quad of the output. Multiply-adds in float32 are not fused
// here (setup.py says so to the compiler), so that every instruction set rounds alike and all give the same bytes.
#include "quad_kernels.h"

#include <utility>

#include "lane_activations.h"
#include "quad_dot.h"

namespace prunekit {
namespace PRUNEKIT_ISA {
namespace {

constexpr int ROWS = QUAD_ROWS;
// Sums beside a loaded vector and the weights of a tap.
#if defined(PRUNEKIT_SHORT_TILES)
constexpr int MAX_VECTORS = 2;
#else
constexpr int MAX_VECTORS = RATE && WIDE_REGISTER_FILE ? 6 : 2;
#endif
// A dot product takes five cycles; with fewer sums than that in a pattern, every second tap adds to sums of its own.
constexpr int MIN_CHAINS = 5;

template <int VECTORS>
struct Sums {
  ivec row[ROWS][VECTORS];
};

ALWAYS_INLINE ivec load_quads(const float* p) { return *reinterpret_cast<const ivec*>(p); }
ALWAYS_INLINE void store_quads(float* p, ivec v) { *reinterpret_cast<ivec*>(p) = v; }
ALWAYS_INLINE vec to_float(ivec v) { return __builtin_convertvector(v, vec); }
ALWAYS_INLINE ivec four_times(int32_t byte) {
  return ivec{} + static_cast<int32_t>(0x01010101u * static_cast<uint32_t>(byte));
}

ALWAYS_INLINE ivec blended(ivec v, const int32_t* mask, ivec otherwise) {
  const ivec is_pixel = *reinterpret_cast<const ivec*>(mask);
  return (v & is_pixel) | (otherwise & ~is_pixel);
}

// round(value / scale) + zero within 0 ... 255, ties to even; 0 for nan. 1.5 · 2^23 moves the integer to the low bits.
ALWAYS_INLINE ivec level_of(vec value, vec inverse_scale, vec zero) {
  vec level = value * inverse_scale;
  level = level > -zero ? level : -zero;
  level = level < 255.0f - zero ? level : 255.0f - zero;
  return reinterpret_cast<ivec>(level + 12582912.0f + zero) - 0x4b400000;
}

// Byte `channel` of each quad as what it stands for.
ALWAYS_INLINE vec value_of(ivec quads, int channel, float scale, int32_t zero) {
  return to_float((quads >> 8 * channel & 255) - zero) * scale;
}

template <int PATTERN, int STEP, int VECTORS, int... V, int... R>
ALWAYS_INLINE void add_tap(
    Sums<VECTORS>& acc, const float* pixels, const int32_t*& values, std::integer_sequence<int, V...>,
    std::integer_sequence<int, R...>) {
  ivec weight[ROWS];
  auto take = [&](auto r) __attribute__((always_inline)) {
    constexpr int row = decltype(r)::value;
    if constexpr ((PATTERN >> row) & 1) {
      weight[row] = ivec{} + *values++;
      KEEP_IN_REGISTER(weight[row]);
    }
  };
  (..., take(std::integral_constant<int, R>{}));
  auto feed = [&](auto v) __attribute__((always_inline)) {
    constexpr int vector = decltype(v)::value;
    ivec x = ready(load_quads(pixels + vector * STEP * LANES));
    KEEP_IN_REGISTER(x);
    (..., ((PATTERN >> R) & 1 ? void(acc.row[R][vector] = dot(acc.row[R][vector], x, weight[R])) : void()));
  };
  (..., feed(std::integral_constant<int, V>{}));
}

template <int PATTERN, int STEP, typename Offset, int VECTORS>
ALWAYS_INLINE void add_pattern(
    Sums<VECTORS>& acc, int count, const float* x, const Offset*& offsets, const int32_t*& values) {
  auto add = [&](Sums<VECTORS>& sums, int i) __attribute__((always_inline)) {
    const float* pixels = reinterpret_cast<const float*>(
        reinterpret_cast<const char*>(x) + static_cast<uint64_t>(offsets[i]) * (LANES * sizeof(float)));
    asm("" : "+r"(pixels));  // one address for all vectors
    add_tap<PATTERN, STEP>(
        sums, pixels, values, std::make_integer_sequence<int, VECTORS>{}, std::make_integer_sequence<int, ROWS>{});
  };
  int i = 0;
  if constexpr (VECTORS * __builtin_popcount(PATTERN) < MIN_CHAINS) {
    Sums<VECTORS> more = {};
    for (; i + 2 <= count; i += 2) {
      add(acc, i);
      add(more, i + 1);
    }
    for (int r = 0; r < ROWS; ++r) {
      for (int v = 0; v < VECTORS; ++v) {
        acc.row[r][v] += more.row[r][v];
      }
    }
  }
  for (; i < count; ++i) {
    add(acc, i);
  }
  offsets += count;
}

template <int STEP, typename Offset, int VECTORS, int... P>
ALWAYS_INLINE void add_segment(
    Sums<VECTORS>& acc, const QuadConvTile& tile, const int32_t* segment, const float* x,
    std::integer_sequence<int, P...>) {
  const Offset* offsets = static_cast<const Offset*>(tile.offsets) + segment[0];
  const int32_t* values = static_cast<const int32_t*>(tile.values) + segment[1];
  const uint16_t* counts = reinterpret_cast<const uint16_t*>(segment + 2);
  (..., add_pattern<P + 1, STEP>(acc, counts[P], x, offsets, values));
}

// One output channel's values from its sums.
template <LaneActivation BEFORE, LaneActivation AFTER>
ALWAYS_INLINE vec finished(const QuadConvTile& t, ivec sum, int64_t row, const ivec* residual, int channel) {
  vec value = to_float(sum) * t.scales[row] + t.bias[row];
  value = Activate<BEFORE>::of(value, t.before.parameter);
  if (residual) {
    value += value_of(*residual, channel, t.residual_scale, t.residual_zero);
  }
  return Activate<AFTER>::of(value, t.after.parameter);
}

// Finish a row group's `vectors` vectors from `first` on, whose sums lie in `sums`, row by row.
template <LaneActivation BEFORE, LaneActivation AFTER>
void write_quad(const QuadConvTile& tile, const float* sums, int64_t row_group, int64_t first, int64_t vectors) {
  const QuadConvTile t = tile;  // for all that the compiler knows, what is written might be any of its fields
  const int64_t first_row = row_group * ROWS;
  const int64_t rows = t.rows_per_group - first_row < ROWS ? t.rows_per_group - first_row : ROWS;
  const int32_t* mask = t.mask + first * LANES;
  const vec inverse_scale = vec{} + 1.0f / t.y_scale, zero = vec{} + static_cast<float>(t.y_zero);
  const ivec no_pixel = four_times(t.y_zero);
  const float* residual = t.residual ? t.residual + row_group * t.residual_channel + first * LANES : nullptr;
  float* y = t.y + (t.is_float ? first_row : row_group) * t.y_channel + first * LANES;
  for (int64_t v = 0; v < vectors; ++v) {
    const ivec other = residual ? load_quads(residual + v * LANES) : ivec{};
    ivec quads = {};
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
      const vec value = finished<BEFORE, AFTER>(
          t, load_quads(sums + (r * vectors + v) * LANES), first_row + r, residual ? &other : nullptr, r);
      if (!t.is_float) {
        quads |= level_of(value, inverse_scale, zero) << 8 * r;
      } else if (r < rows) {
        store(y + r * t.y_channel + v * LANES, masked(value, mask + v * LANES));
      }
    }
    if (!t.is_float) {
      store_quads(y + v * LANES, blended(quads, mask + v * LANES, no_pixel));
    }
  }
}

// Out of line, as in lane_kernels.cpp. Of the two activations one is none, which the plan makes sure of.
__attribute__((noinline)) void write_rows(
    const QuadConvTile& t, float* sums, int64_t row_group, int64_t first, int64_t vectors) {
  constexpr LaneActivation NONE = LaneActivation::NONE;
  if (t.after.activation == NONE) {
    with_activation(t.before.activation, [&](auto a) __attribute__((always_inline)) {
      write_quad<decltype(a)::value, NONE>(t, sums, row_group, first, vectors);
    });
  } else {
    with_activation(t.after.activation, [&](auto a) __attribute__((always_inline)) {
      write_quad<NONE, decltype(a)::value>(t, sums, row_group, first, vectors);
    });
  }
}

template <int STEP, typename Offset, int VECTORS>
ALWAYS_INLINE void run_row_group(
    const QuadConvTile& tile, int64_t row_group, int64_t block, int64_t first, float* rest) {
  const int32_t* segment = tile.segments + (block * tile.num_row_groups + row_group) * tile.segment_words;
  Sums<VECTORS> acc;
  for (int r = 0; r < ROWS; ++r) {
    for (int v = 0; v < VECTORS; ++v) {
      acc.row[r][v] =
          block == 0 ? ivec{} + tile.sums[row_group * ROWS + r] : load_quads(rest + (r * VECTORS + v) * LANES);
    }
  }
  const float* x = tile.x + block * tile.block_stride + first * STEP * LANES;
  add_segment<STEP, Offset>(acc, tile, segment, x, std::make_integer_sequence<int, (1 << ROWS) - 1>{});
  for (int r = 0; r < ROWS; ++r) {
    for (int v = 0; v < VECTORS; ++v) {
      store_quads(rest + (r * VECTORS + v) * LANES, acc.row[r][v]);
    }
  }
  if (block == tile.num_channel_blocks - 1) {
    write_rows(tile, rest, row_group, first, VECTORS);
  }
}

template <int STEP, typename Offset, int VECTORS>
void run_conv_tile(const QuadConvTile& tile) {
  // With one channel block no row group's sums are needed again.
  const int64_t rest_step = tile.num_channel_blocks > 1 ? ROWS * VECTORS * LANES : 0;
  for (int64_t block = 0; block < tile.num_channel_blocks; ++block) {
    float* rest = tile.accumulators;
    for (int64_t row_group = tile.row_group_begin; row_group < tile.row_group_end; ++row_group, rest += rest_step) {
      for (int64_t repeat = 0; repeat < tile.repeats; ++repeat) {
        run_row_group<STEP, Offset, VECTORS>(tile, row_group, block, repeat * VECTORS, rest);
      }
    }
  }
}

template <int STEP, typename Offset, typename Sequence>
struct Table;
template <int STEP, typename Offset, int... V>
struct Table<STEP, Offset, std::integer_sequence<int, V...>> {
  static constexpr QuadConvKernel kernels[] = {run_conv_tile<STEP, Offset, V + 1>...};
};

template <int STEP, typename Offset>
constexpr const QuadConvKernel* table() {
  return Table<STEP, Offset, std::make_integer_sequence<int, MAX_VECTORS>>::kernels;
}

void quantize(const QuadConversion& conversion) {
  const QuadConversion c = conversion;
  const vec inverse_scale = vec{} + 1.0f / c.scale, zero = vec{} + static_cast<float>(c.zero);
  for (int64_t v = 0; v < c.vectors; ++v) {
    ivec quads = {};
    for (int64_t k = 0; k < ROWS; ++k) {
      const vec value = k < c.channels ? load(c.x + k * c.x_channel + v * LANES) : vec{};
      quads |= level_of(value, inverse_scale, zero) << static_cast<int32_t>(8 * k);
    }
    store_quads(c.y + v * LANES, blended(quads, c.mask + v * LANES, four_times(c.zero)));
  }
}

void dequantize(const QuadConversion& conversion) {
  const QuadConversion c = conversion;
  for (int64_t v = 0; v < c.vectors; ++v) {
    const ivec quads = load_quads(c.x + v * LANES);
    for (int64_t k = 0; k < c.channels; ++k) {
      const vec value = value_of(quads, static_cast<int>(k), c.scale, c.zero);
      store(c.y + k * c.y_channel + v * LANES, masked(value, c.mask + v * LANES));
    }
  }
}

void max_pool(const QuadPool& pool) {
  const QuadPool p = pool;
  for (int64_t v = 0; v < p.vectors; ++v) {
    bytes largest = reinterpret_cast<bytes>(load_quads(p.x + (p.taps[0] + v * p.step) * LANES));
    for (int64_t t = 1; t < p.num_taps; ++t) {
      const bytes next = reinterpret_cast<bytes>(load_quads(p.x + (p.taps[t] + v * p.step) * LANES));
      largest = next > largest ? next : largest;
    }
    store_quads(p.y + v * LANES, blended(reinterpret_cast<ivec>(largest), p.mask + v * LANES, four_times(p.zero)));
  }
}

}  // namespace

extern const QuadKernels quad_kernels;
const QuadKernels quad_kernels = {
    DOT,
    RATE,
    LANES,
    MAX_VECTORS,
    X_SHIFT,
    MAX_PAIR,
    {table<1, uint16_t>(), table<1, uint32_t>(), table<2, uint32_t>()},
    quantize,
    dequantize,
    max_pool};

}  // namespace PRUNEKIT_ISA
}  // namespace prunekit
