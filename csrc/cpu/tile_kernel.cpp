// The masked convolution's inner loops, compiled once per instruction set (PRUNEKIT_ISA names it).
//
//   acc[row][pixel] += value(row, tap) · planes[tap_offset[tap] + pixel]
//
// A tile keeps `rows` output channels × `vectors` pixel vectors in registers, so a loaded input vector feeds every
// row that keeps its tap and a broadcast weight feeds `vectors` FMAs. Input channels come in blocks whose touched
// planes stay in L1; between blocks the accumulators rest in scratch memory (L2).
//
// No per-ISA code: the compiler's vector extensions at VECTOR_BYTES, with as many accumulators as the register file
// holds beside a loaded vector and the broadcast weights.
#include "tile_kernel.h"

#include <utility>

#include "vector_width.h"

namespace prunekit {
namespace PRUNEKIT_ISA {
namespace {

constexpr int MAX_VECTORS_ROWS1 = WIDE_REGISTER_FILE ? 16 : 12;
constexpr int MAX_VECTORS_ROWS4 = WIDE_REGISTER_FILE ? 6 : 3;

template <typename T>
struct Vector {
  static constexpr int LANES = VECTOR_BYTES / sizeof(T);
  typedef T type __attribute__((vector_size(VECTOR_BYTES)));
  typedef T unaligned __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(T)), may_alias));
};
template <typename T>
using vec = typename Vector<T>::type;

template <typename T>
ALWAYS_INLINE vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Vector<T>::unaligned*>(p);
}
template <typename T>
ALWAYS_INLINE void store(T* p, vec<T> v) {
  *reinterpret_cast<typename Vector<T>::unaligned*>(p) = v;
}

template <typename T, int ROWS, int VECTORS>
struct Accumulators {
  vec<T> row[ROWS][VECTORS];
};

// One tap: load each pixel vector once, feed the rows in PATTERN.
template <int PATTERN, typename T, int ROWS, int VECTORS, int... V, int... R>
ALWAYS_INLINE void add_tap(
    Accumulators<T, ROWS, VECTORS>& acc, const T* pixels, const T*& values, std::integer_sequence<int, V...>,
    std::integer_sequence<int, R...>) {
  T weight[ROWS] = {((PATTERN >> R) & 1 ? *values++ : T(0))...};
  auto feed = [&](auto v) __attribute__((always_inline)) {
    constexpr int vector = decltype(v)::value;
    const vec<T> x = load(pixels + vector * Vector<T>::LANES);
    (..., ((PATTERN >> R) & 1 ? void(acc.row[R][vector] += x * weight[R]) : void()));
  };
  (..., feed(std::integral_constant<int, V>{}));
}

template <int PATTERN, typename T, int ROWS, int VECTORS>
ALWAYS_INLINE void add_pattern(
    Accumulators<T, ROWS, VECTORS>& acc, int count, const T* pixels, const int32_t* tap_offset, const uint16_t*& ids,
    const T*& values) {
  for (int i = 0; i < count; ++i) {
    add_tap<PATTERN>(
        acc, pixels + tap_offset[ids[i]], values, std::make_integer_sequence<int, VECTORS>{},
        std::make_integer_sequence<int, ROWS>{});
  }
  ids += count;
}

template <typename T, int ROWS, int VECTORS, int... P>
ALWAYS_INLINE void add_segment(
    Accumulators<T, ROWS, VECTORS>& acc, const Tile<T>& tile, const int32_t* segment, const int32_t* tap_offset,
    std::integer_sequence<int, P...>) {
  const uint16_t* ids = tile.ids + segment[0];
  const T* values = tile.values + segment[1];
  const uint16_t* counts = reinterpret_cast<const uint16_t*>(segment + 2);
  (..., add_pattern<P + 1>(acc, counts[P], tile.planes + tile.first, tap_offset, ids, values));
}

// Activate one row and write its pixels, leaving out the row ends that only exist in the padded planes.
template <typename T, int VECTORS>
ALWAYS_INLINE void write_row(const Tile<T>& tile, const vec<T> (&acc)[VECTORS], T* y) {
  constexpr int LANES = Vector<T>::LANES;
  alignas(64) T buffer[VECTORS * LANES];
  for (int v = 0; v < VECTORS; ++v) {
    vec<T> value = acc[v];
    if (tile.activation == Activation::LEAKY_RELU) {
      // A slope of 0 must not turn -inf into nan.
      const vec<T> below = tile.negative_slope == T(0) ? vec<T>{} : value * tile.negative_slope;
      value = value < T(0) ? below : value;
    }
    store(buffer + v * LANES, value);
  }
  const int64_t stop = tile.first + VECTORS * LANES < tile.end ? tile.first + VECTORS * LANES : tile.end;
  int64_t pixel = tile.store_from, row = pixel / tile.pitch;
  while (pixel < stop) {
    const int64_t column = pixel - row * tile.pitch;
    const int64_t row_stop = row * tile.pitch + tile.q;
    if (row_stop > pixel) {
      const int64_t length = (row_stop < stop ? row_stop : stop) - pixel;
      __builtin_memcpy(y + row * tile.q + column, buffer + (pixel - tile.first), length * sizeof(T));
    }
    pixel = ++row * tile.pitch;
  }
}

template <typename T, int ROWS, int VECTORS, int... R, int... V>
ALWAYS_INLINE void run_row_group(
    const Tile<T>& tile, int64_t row_group, int64_t block, T* rest, std::integer_sequence<int, R...>,
    std::integer_sequence<int, V...>) {
  constexpr int LANES = Vector<T>::LANES;
  const int32_t* segment = tile.segments + (block * tile.num_row_groups + row_group) * tile.segment_words;
  const int64_t first_row = row_group * ROWS;
  const bool is_last = block == tile.num_channel_blocks - 1;
  Accumulators<T, ROWS, VECTORS> acc;
  auto each = [&](auto action) __attribute__((always_inline)) {
    auto each_row = [&](auto r) __attribute__((always_inline)) {
      (..., action(acc.row[decltype(r)::value][V], decltype(r)::value, V));
    };
    (..., each_row(std::integral_constant<int, R>{}));
  };
  if (block == 0) {
    each([&](vec<T>& a, int r, int) __attribute__((always_inline)) {
      const T start = tile.bias && first_row + r < tile.rows_per_group ? tile.bias[first_row + r] : T(0);
      a = vec<T>{} + start;
    });
  } else {
    each([&](vec<T>& a, int r, int v) __attribute__((always_inline)) { a = load(rest + (r * VECTORS + v) * LANES); });
  }
  add_segment(
      acc, tile, segment, tile.tap_offset + block * tile.block_taps,
      std::make_integer_sequence<int, (1 << ROWS) - 1>{});
  if (!is_last) {
    each([&](vec<T>& a, int r, int v) __attribute__((always_inline)) { store(rest + (r * VECTORS + v) * LANES, a); });
    return;
  }
  auto write = [&](auto r) __attribute__((always_inline)) {
    const int64_t row = first_row + decltype(r)::value;
    if (row < tile.rows_per_group) {
      write_row(tile, acc.row[decltype(r)::value], tile.y + row * tile.y_plane);
    }
  };
  (..., write(std::integral_constant<int, R>{}));
}

template <typename T, int ROWS, int VECTORS>
void run_tile(const Tile<T>& tile) {
  constexpr int64_t REST = ROWS * VECTORS * Vector<T>::LANES;
  for (int64_t block = 0; block < tile.num_channel_blocks; ++block) {
    T* rest = tile.accumulators;
    for (int64_t row_group = tile.row_group_begin; row_group < tile.row_group_end; ++row_group, rest += REST) {
      run_row_group<T, ROWS, VECTORS>(
          tile, row_group, block, rest, std::make_integer_sequence<int, ROWS>{},
          std::make_integer_sequence<int, VECTORS>{});
    }
  }
}

template <typename T, int ROWS, int... V>
void dispatch_vectors(const Tile<T>& tile, std::integer_sequence<int, V...>) {
  using Run = void (*)(const Tile<T>&);
  static constexpr Run table[] = {run_tile<T, ROWS, V + 1>...};
  table[tile.vectors - 1](tile);
}

template <typename T>
void run_rows1(const Tile<T>& tile) {
  dispatch_vectors<T, 1>(tile, std::make_integer_sequence<int, MAX_VECTORS_ROWS1>{});
}
template <typename T>
void run_rows4(const Tile<T>& tile) {
  dispatch_vectors<T, 4>(tile, std::make_integer_sequence<int, MAX_VECTORS_ROWS4>{});
}

template <typename T>
constexpr TileKernels<T> kernels() {
  return {Vector<T>::LANES, MAX_VECTORS_ROWS1, MAX_VECTORS_ROWS4, run_rows1<T>, run_rows4<T>};
}

}  // namespace

extern const InstructionSet instruction_set;
const InstructionSet instruction_set = {STRINGIZE(PRUNEKIT_ISA), kernels<float>(), kernels<double>()};

}  // namespace PRUNEKIT_ISA
}  // namespace prunekit
