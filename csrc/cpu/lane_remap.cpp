// Planes made of other planes' rows and columns: into lanes and out of them, phases of a stride, upsampling, padding.
// Compiled once per instruction set; lane_kernels.h tells the layout.
//
// Lanes are the transpose of planar pixels: lane l of LANES neighboring vectors is LANES neighboring pixels. So a
// plane is made planar by transposing squares of LANES × LANES, its rows and columns are picked there, where
// neighbors are neighbors, and the result goes back into lanes the same way.
#include "lane_remap.h"

#include <cstring>
#include <utility>

#include "lane_vector.h"

namespace prunekit {
namespace PRUNEKIT_ISA {
namespace {

static_assert(REMAP_SPARE >= 2 * LANES);

template <typename Sequence>
struct Shuffles;
template <int... L>
struct Shuffles<std::integer_sequence<int, L...>> {
  // Squares of DISTANCE change places across the diagonal.
  template <int DISTANCE>
  static constexpr ivec low() {
    return ivec{(L & DISTANCE ? LANES + L - DISTANCE : L)...};
  }
  template <int DISTANCE>
  static constexpr ivec high() {
    return ivec{(L & DISTANCE ? LANES + L : L + DISTANCE)...};
  }
  // Every second element of two vectors; each element of half a vector twice.
  static constexpr ivec even() { return ivec{(2 * L)...}; }
  static constexpr ivec twice(int half) { return ivec{(half * LANES / 2 + L / 2)...}; }
};
using Shuffle = Shuffles<std::make_integer_sequence<int, LANES>>;

template <int DISTANCE>
ALWAYS_INLINE void transpose(vec (&rows)[LANES]) {
  if constexpr (DISTANCE < LANES) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) {
      if (!(i & DISTANCE)) {
        const vec a = rows[i], b = rows[i + DISTANCE];
        rows[i] = shuffle(a, b, Shuffle::low<DISTANCE>());
        rows[i + DISTANCE] = shuffle(a, b, Shuffle::high<DISTANCE>());
      }
    }
    transpose<2 * DISTANCE>(rows);
  }
}

// y[i · y_step + k] = x[k · x_step + i] for i, k < LANES
ALWAYS_INLINE void transpose_square(const float* x, int64_t x_step, float* y, int64_t y_step) {
  vec rows[LANES];
#pragma GCC unroll 16
  for (int k = 0; k < LANES; ++k) {
    rows[k] = load_unaligned(x + k * x_step);
  }
  transpose<1>(rows);
#pragma GCC unroll 16
  for (int i = 0; i < LANES; ++i) {
    store_unaligned(y + i * y_step, rows[i]);
  }
}

// y[l · vectors + j] = x[j · LANES + l] for j < vectors
void to_planar(const float* x, int64_t vectors, float* y) {
  if (vectors < LANES) {
    for (int64_t j = 0; j < vectors; ++j) {
      for (int64_t l = 0; l < LANES; ++l) {
        y[l * vectors + j] = x[j * LANES + l];
      }
    }
    return;
  }
  for (int64_t next = 0; next < vectors; next += LANES) {
    const int64_t j = next + LANES <= vectors ? next : vectors - LANES;  // the last square may repeat some
    transpose_square(x + j * LANES, LANES, y + j, vectors);
  }
}

// y[j · LANES + l] = x[l · vectors + j] for j < vectors + back
void to_lanes(const float* x, int64_t vectors, int64_t back, float* y) {
  const int64_t all = vectors + back;
  if (all < LANES) {
    for (int64_t j = 0; j < all; ++j) {
      for (int64_t l = 0; l < LANES; ++l) {
        y[j * LANES + l] = x[l * vectors + j];
      }
    }
    return;
  }
  for (int64_t next = 0; next < all; next += LANES) {
    const int64_t j = next + LANES <= all ? next : all - LANES;
    transpose_square(x + j, vectors, y + j * LANES, LANES);
  }
}

// `spare`: elements behind the last of x and y that may be read and written as well.
void pick_run(const float* x, const ColumnRun& run, float* y, int64_t count, int64_t spare) {
  int64_t j = 0;
  if (run.step == 1 && run.repeat == 1) {
    std::memcpy(y, x, count * sizeof(float));
    return;
  }
  if (run.step == 2 && run.repeat == 1) {
    // Of 2 · LANES elements the last is not taken, and might not be there behind the last pixel of all.
    for (; spare ? j < count : j + LANES < count; j += LANES) {
      store_unaligned(y + j, shuffle(load_unaligned(x + 2 * j), load_unaligned(x + 2 * j + LANES), Shuffle::even()));
    }
    for (; j < count; ++j) {
      y[j] = x[2 * j];
    }
    return;
  }
  if (run.step == 1 && run.repeat == 2) {
    for (; spare ? j < count : j + 2 * LANES <= count; j += 2 * LANES) {
      const vec source = load_unaligned(x + j / 2);
      store_unaligned(y + j, shuffle(source, source, Shuffle::twice(0)));
      store_unaligned(y + j + LANES, shuffle(source, source, Shuffle::twice(1)));
    }
  }
  for (; j < count; ++j) {
    y[j] = x[j / run.repeat * run.step];
  }
}

void pick_columns(const float* x, const ColumnRun* run, float fill, float* y, int64_t count, int64_t spare) {
  for (; run->begin < count; ++run) {
    const int64_t end = run->end < count ? run->end : count;
    if (run->source >= 0) {
      pick_run(x + run->source, *run, y + run->begin, end - run->begin, spare);
      continue;
    }
    for (int64_t j = run->begin; j < end; ++j) {
      y[j] = fill;
    }
  }
}

}  // namespace

void run_remap(const LaneRemap& r) {
  const float* x = r.x;
  if (r.x_vectors) {
    to_planar(r.x, r.x_vectors, r.x_planar);
    x = r.x_planar;
  }
  // Rows are written in order, so what one leaves in the next one's place does not stay.
  const int64_t spare = r.x_vectors && r.y_vectors ? REMAP_SPARE : 0;
  const auto pitch = static_cast<int32_t>(r.y_pitch);
  const ColumnRun nowhere[] = {{0, pitch, -1, 1, 1}, {pitch, pitch, -1, 1, 1}};
  for (int64_t plane = 0; plane < r.num_planes; ++plane) {
    float* target = r.y + plane * r.y_plane;
    float* y = r.y_vectors ? r.y_planar : target;
    const int32_t* rows = r.rows + plane * r.num_rows;
    for (int64_t i = 0; i < r.num_rows; ++i) {
      const int64_t rest = r.length - i * r.y_pitch, count = rest < r.y_pitch ? rest : r.y_pitch;
      float* row = y + i * r.y_pitch;
      if (i && rows[i] == rows[i - 1]) {
        std::memcpy(row, row - r.y_pitch, count * sizeof(float));
      } else if (rows[i] >= 0) {
        pick_columns(x + rows[i] * r.x_pitch, r.runs[plane], r.fill, row, count, spare);
      } else {
        pick_columns(x, nowhere, r.fill, row, count, 0);
      }
    }
    if (r.y_vectors) {
      to_lanes(r.y_planar, r.y_vectors, r.y_back, target);
    }
  }
}

}  // namespace PRUNEKIT_ISA
}  // namespace prunekit
