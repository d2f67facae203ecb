// Random problems for one compiled set of int8 kernels (PRUNEKIT_ISA names it), against plain loops.
//
// Prints the instruction, how many numbers were compared, and the first difference; exits with 1 where there is one.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "quad_kernels.h"

namespace prunekit {
namespace PRUNEKIT_ISA {
extern const QuadKernels quad_kernels;
}
}  // namespace prunekit

using namespace prunekit;

namespace {

const QuadKernels& KERNELS = PRUNEKIT_ISA::quad_kernels;
std::mt19937 generator;
long compared = 0;

int draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }
float real(float low, float high) { return std::uniform_real_distribution<float>(low, high)(generator); }

// Elements at a cache line's beginning.
struct Elements {
  explicit Elements(int64_t count) : data(static_cast<float*>(std::aligned_alloc(64, (count * 4 + 127) / 64 * 64))) {}
  ~Elements() { std::free(data); }
  Elements(const Elements&) = delete;
  uint8_t* bytes() const { return reinterpret_cast<uint8_t*>(data); }
  float* data;
};

void differ(const char* what, double expected, double found) {
  std::printf("%s: expected %.9g, got %.9g\n", what, expected, found);
  std::exit(1);
}

void compare(const char* what, double expected, double found) {
  ++compared;
  if (expected != found && !(std::isnan(expected) && std::isnan(found))) {
    differ(what, expected, found);
  }
}

// What is taken out of a quad of weights, so that neither half's weights of one sign add up to more than the kernels take.
int32_t too_much(int32_t quad) {
  int8_t w[4], taken[4] = {};
  std::memcpy(w, &quad, 4);
  for (int half = 0; half < 4; half += 2) {
    const bool is_one_sign = w[half] * w[half + 1] > 0;
    if (is_one_sign && std::abs(w[half] + w[half + 1]) > KERNELS.max_pair) taken[half] = w[half];
  }
  std::memcpy(&quad, taken, 4);
  return quad;
}

// One rounding an operation, as the kernels have it; this file is compiled without fused multiply-adds.
float activated(float v, LaneActivation activation, float parameter) {
  switch (activation) {
    case LaneActivation::LEAKY_RELU:
      return v < 0.0f ? v * parameter : v;
    case LaneActivation::RELU:
      return v < 0.0f ? 0.0f : v;
    default:
      return v;
  }
}

int level(float value, float scale, int zero) {
  float v = value * (1.0f / scale);
  v = v > static_cast<float>(-zero) ? v : static_cast<float>(-zero);
  v = v < static_cast<float>(255 - zero) ? v : static_cast<float>(255 - zero);
  return static_cast<int>(std::nearbyint(v)) + zero;
}

void check_convolution(int problem) {
  const int64_t lanes = KERNELS.lanes;
  const int quads = draw(1, 9), taps = draw(1, 9), outputs = draw(1, 11), block = draw(1, quads);
  const int vectors = draw(1, static_cast<int>(KERNELS.max_vectors)), repeats = block >= quads ? draw(1, 3) : 1;
  const bool is_strided = problem % 3 == 2, is_float = problem % 2 == 1, has_residual = problem % 5 < 2;
  const int step = is_strided ? 2 : 1, span = vectors * repeats, groups = (outputs + 3) / 4;
  const int64_t plane = (span - 1) * step + 1 + taps;
  const Elements x(quads * plane * lanes), y(4 * groups * span * lanes), residual(groups * span * lanes);
  for (int64_t i = 0; i < quads * plane * lanes * 4; ++i) x.bytes()[i] = static_cast<uint8_t>(draw(0, 255));
  for (int64_t i = 0; i < groups * span * lanes * 4; ++i) residual.bytes()[i] = static_cast<uint8_t>(draw(0, 255));

  std::vector<int8_t> weight(static_cast<size_t>(4 * groups * quads * taps * 4));
  const int density = draw(0, 4);
  for (int8_t& w : weight) w = draw(1, 4) <= density ? static_cast<int8_t>(draw(-127, 127)) : 0;
  auto at = [&](int k, int q, int t) { return &weight[static_cast<size_t>((k * quads + q) * taps + t) * 4]; };
  for (int k = outputs; k < 4 * groups; ++k)
    for (int q = 0; q < quads; ++q)
      for (int t = 0; t < taps; ++t) std::memset(at(k, q, t), 0, 4);

  const int blocks = (quads + block - 1) / block;
  std::vector<int32_t> segments, values;
  std::vector<uint16_t> narrow;
  std::vector<uint32_t> wide;
  for (int b = 0; b < blocks; ++b)
    for (int g = 0; g < groups; ++g) {
      const size_t first = segments.size();
      segments.resize(first + 10);
      segments[first] = static_cast<int32_t>(narrow.size());
      segments[first + 1] = static_cast<int32_t>(values.size());
      auto* counts = reinterpret_cast<uint16_t*>(&segments[first + 2]);
      for (int pattern = 1; pattern < 16; ++pattern)
        for (int q = b * block; q < quads && q < (b + 1) * block; ++q)
          for (int part = 0; part < 2 * taps; ++part) {
            const int t = part / 2;
            int found = 0;
            int32_t words[4];
            for (int r = 0; r < 4; ++r) {
              std::memcpy(&words[r], at(4 * g + r, q, t), 4);
              const int32_t taken = too_much(words[r]);
              words[r] = part % 2 ? taken : words[r] ^ taken;  // bytes are in one or the other
              found |= (words[r] != 0) << r;
            }
            if (found != pattern) continue;
            ++counts[pattern - 1];
            const auto offset = static_cast<uint32_t>((q - b * block) * plane + t);
            narrow.push_back(static_cast<uint16_t>(offset));
            wide.push_back(offset);
            for (int r = 0; r < 4; ++r)
              if (pattern >> r & 1) values.push_back(words[r]);
          }
    }

  const int x_zero = draw(0, 255), y_zero = draw(0, 255), residual_zero = draw(0, 255);
  const float y_scale = real(0.01f, 2.0f), residual_scale = real(0.01f, 0.1f);
  std::vector<int32_t> sums(4 * groups);
  std::vector<float> scales(4 * groups), bias(4 * groups);
  for (int k = 0; k < 4 * groups; ++k) {
    int total = 0;
    for (int q = 0; q < quads; ++q)
      for (int t = 0; t < taps; ++t)
        for (int c = 0; c < 4; ++c) total += at(k, q, t)[c];
    sums[k] = total * (static_cast<int32_t>(KERNELS.x_shift) - x_zero);
    scales[k] = real(1e-4f, 1e-2f);
    bias[k] = real(-2.0f, 2.0f);
  }
  const Elements mask(span * lanes), accumulators(4 * groups * vectors * lanes);
  for (int64_t i = 0; i < span * lanes; ++i) reinterpret_cast<int32_t*>(mask.data)[i] = -draw(0, 1);
  const LaneActivation kinds[] = {LaneActivation::NONE, LaneActivation::LEAKY_RELU, LaneActivation::RELU};
  LaneEpilogue before{kinds[draw(0, 2)], 0.1f}, after{LaneActivation::NONE, 0.25f};
  if (before.activation == LaneActivation::NONE) after.activation = kinds[draw(0, 2)];

  QuadConvTile tile{};
  tile.x = x.data;
  tile.segments = segments.data();
  const bool is_wide = is_strided || problem % 7 == 0;
  tile.offsets = is_wide ? static_cast<const void*>(wide.data()) : narrow.data();
  tile.values = values.data();
  tile.segment_words = 10, tile.num_row_groups = groups, tile.num_channel_blocks = blocks;
  tile.block_stride = block * plane * lanes;
  tile.row_group_begin = 0, tile.row_group_end = groups, tile.rows_per_group = outputs, tile.repeats = repeats;
  tile.sums = sums.data(), tile.scales = scales.data(), tile.bias = bias.data();
  tile.residual = has_residual ? residual.data : nullptr;
  tile.residual_channel = span * lanes, tile.residual_scale = residual_scale, tile.residual_zero = residual_zero;
  tile.before = before, tile.after = after;
  tile.mask = reinterpret_cast<const int32_t*>(mask.data);
  tile.accumulators = accumulators.data;
  tile.y = y.data, tile.y_channel = span * lanes;
  tile.is_float = is_float, tile.y_scale = y_scale, tile.y_zero = y_zero;
  KERNELS.conv[is_strided ? STEP2_OFFSETS32 : is_wide ? STEP1_OFFSETS32 : STEP1_OFFSETS16][vectors - 1](tile);

  for (int k = 0; k < 4 * groups; ++k)
    for (int64_t i = 0; i < span * lanes; ++i) {
      const bool is_pixel = tile.mask[i] != 0;
      int32_t sum = 0;
      for (int q = 0; q < quads; ++q)
        for (int t = 0; t < taps; ++t)
          for (int c = 0; c < 4; ++c) {
            const int64_t element = (q * plane + i / lanes * step + t) * lanes + i % lanes;
            sum += (x.bytes()[4 * element + c] - x_zero) * at(k, q, t)[c];
          }
      float value = activated(static_cast<float>(sum) * scales[k] + bias[k], before.activation, before.parameter);
      if (has_residual) {
        const int other = residual.bytes()[4 * (k / 4 * span * lanes + i) + k % 4];
        value += static_cast<float>(other - residual_zero) * residual_scale;
      }
      value = activated(value, after.activation, after.parameter);
      if (!is_float) {
        const int expected = is_pixel ? level(value, y_scale, y_zero) : y_zero;
        compare("a level", expected, y.bytes()[4 * (k / 4 * span * lanes + i) + k % 4]);
      } else if (k < outputs) {
        compare("a float32", is_pixel ? value : 0.0f, y.data[k * span * lanes + i]);
      }
    }
}

void check_conversions() {
  const int64_t lanes = KERNELS.lanes;
  const int vectors = draw(1, 5), channels = draw(1, 4), zero = draw(0, 255);
  const float scale = real(0.01f, 2.0f);
  const Elements x(4 * vectors * lanes), quads(vectors * lanes), back(4 * vectors * lanes), mask(vectors * lanes);
  auto* is_pixel = reinterpret_cast<int32_t*>(mask.data);
  const float special[] = {0.0f, 1e30f, -1e30f, NAN, INFINITY, -INFINITY};
  for (int64_t i = 0; i < 4 * vectors * lanes; ++i)
    x.data[i] = draw(0, 9) ? real(-200.0f, 200.0f) : special[draw(0, 5)];
  for (int64_t i = 0; i < vectors * lanes; ++i) is_pixel[i] = -draw(0, 1);
  KERNELS.quantize({x.data, vectors * lanes, quads.data, 0, vectors, channels, scale, zero, is_pixel});
  KERNELS.dequantize({quads.data, 0, back.data, vectors * lanes, vectors, channels, scale, zero, is_pixel});
  for (int64_t i = 0; i < vectors * lanes; ++i)
    for (int k = 0; k < 4; ++k) {
      const float value = k < channels ? x.data[k * vectors * lanes + i] : 0.0f;
      const int expected = !is_pixel[i] ? zero : std::isnan(value) ? 0 : level(value, scale, zero);
      compare("a converted level", expected, quads.bytes()[4 * i + k]);
      if (k < channels) {
        const float number = is_pixel[i] ? static_cast<float>(expected - zero) * scale : 0.0f;
        compare("a converted number", number, back.data[k * vectors * lanes + i]);
      }
    }
}

void check_pool() {
  const int64_t lanes = KERNELS.lanes;
  const int vectors = draw(1, 6), count = draw(1, 6), step = draw(1, 2), zero = draw(0, 255);
  std::vector<int32_t> taps(count);
  for (int32_t& tap : taps) tap = draw(0, 7);
  const int64_t plane = (vectors - 1) * step + 8;
  const Elements x(plane * lanes), y(vectors * lanes), mask(vectors * lanes);
  auto* is_pixel = reinterpret_cast<int32_t*>(mask.data);
  for (int64_t i = 0; i < plane * lanes * 4; ++i) x.bytes()[i] = static_cast<uint8_t>(draw(0, 255));
  for (int64_t i = 0; i < vectors * lanes; ++i) is_pixel[i] = -draw(0, 1);
  KERNELS.max_pool({x.data, y.data, vectors, taps.data(), count, step, zero, is_pixel});
  for (int64_t i = 0; i < vectors * lanes; ++i)
    for (int c = 0; c < 4; ++c) {
      int largest = 0;
      for (const int32_t tap : taps) {
        const int byte = x.bytes()[4 * ((i / lanes * step + tap) * lanes + i % lanes) + c];
        largest = byte > largest ? byte : largest;
      }
      compare("a pooled level", is_pixel[i] ? largest : zero, y.bytes()[4 * i + c]);
    }
}

}  // namespace

int main(int, char** arguments) {
  const int problems = std::atoi(arguments[1]);
  for (int problem = 0; problem < problems; ++problem) {
    generator.seed(problem);
    check_convolution(problem);
    check_conversions();
    check_pool();
  }
  std::printf(
      "%s: %lld lanes, tiles of up to %lld vectors, %ld numbers compared\n", KERNELS.dot,
      static_cast<long long>(KERNELS.lanes), static_cast<long long>(KERNELS.max_vectors), compared);
}
