// Steps that treat each channel by itself: pixel by pixel, pools, means, halos and shifted copies. Compiled once per
// instruction set; lane_kernels.h tells the layout.
#include "lane_channels.h"

#include <utility>

#include "lane_activations.h"

namespace prunekit {
namespace PRUNEKIT_ISA {

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
  const float scale = e.scale, shift = e.shift, parameter = e.epilogue.parameter;
  with_activation(e.epilogue.activation, [&](auto activation) __attribute__((always_inline)) {
    auto loop = [&](auto combine) __attribute__((always_inline)) {
      for (int64_t v = 0; v < vectors; ++v) {
        const vec value = combine(load(x + v * LANES), v * LANES);
        const vec result = Activate<decltype(activation)::value>::of(value, parameter);
        store(y + v * LANES, mask ? masked(result, mask + v * LANES) : result);
      }
    };
    if (!other) {
      loop([&](vec value, int64_t) __attribute__((always_inline)) { return value * scale + shift; });
    } else if (e.is_product) {
      loop([&](vec value, int64_t at) __attribute__((always_inline)) { return value * load(other + at); });
    } else {
      loop([&](vec value, int64_t at) __attribute__((always_inline)) { return value * scale + load(other + at); });
    }
  });
}

void run_pool(const LanePool& pool) {
  const float* x = pool.x;
  float* y = pool.y;
  const int32_t *taps = pool.taps, *mask = pool.mask;
  const int64_t vectors = pool.vectors, num_taps = pool.num_taps, step = pool.step;
  const float *scales = pool.scales, scale = pool.scale;
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
      if constexpr (!decltype(is_max)::value) {
        value *= scales ? load(scales + v * LANES) : vec{} + scale;
      }
      store(y + v * LANES, masked(value, mask + v * LANES));
    }
  });
}

namespace {

// `count` vectors whose pixels are those of `source`, `distance` lanes further on; `fill` beyond the last and before the
// first lane.
ALWAYS_INLINE void copy_shifted(const float* source, float* target, int64_t count, int64_t distance, vec fill) {
  ivec index;
  for (int l = 0; l < LANES; ++l) {
    index[l] = l + distance >= 0 && l + distance < LANES ? static_cast<int32_t>(l + distance) : LANES;
  }
  for (int64_t j = 0; j < count; ++j) {
    store(target + j * LANES, shuffle(load(source + j * LANES), fill, index));
  }
}

// The vectors [begin, end) of a plane of m vectors that goes on on both sides with its neighbors' pixels.
ALWAYS_INLINE void copy_range(const float* plane, int64_t m, int64_t begin, int64_t end, float* target, vec fill) {
  while (begin < end) {
    const int64_t chunk = begin < 0 ? -((m - 1 - begin) / m) : begin / m;
    const int64_t stop = (chunk + 1) * m < end ? (chunk + 1) * m : end;
    const int64_t distance = chunk < -LANES ? -LANES : chunk > LANES ? LANES : chunk;
    copy_shifted(plane + (begin - chunk * m) * LANES, target, stop - begin, distance, fill);
    target += (stop - begin) * LANES;
    begin = stop;
  }
}

}  // namespace

void fill_halo(float* plane, int64_t m, int64_t front, int64_t back, float fill) {
  vec beyond;
  for (int l = 0; l < LANES; ++l) {  // not by a sum, which would change the bits of quads
    beyond[l] = fill;
  }
  copy_range(plane, m, -front, 0, plane - front * LANES, beyond);
  copy_range(plane, m, m, m + back, plane + m * LANES, beyond);
}

void run_shifts(const LaneShifts& s) {
  const int64_t elements = s.vectors * LANES;
  for (int64_t i = 0; i < s.num_copies; ++i) {
    float* target = s.y + i * elements;
    copy_range(s.x, s.vectors, s.shifts[i], s.shifts[i] + s.vectors, target, vec{});
    for (int64_t at = 0; at < elements; at += LANES) {
      store(target + at, masked(load(target + at), s.masks + i * elements + at));
    }
  }
}

}  // namespace PRUNEKIT_ISA
}  // namespace prunekit
