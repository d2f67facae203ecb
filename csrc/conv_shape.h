// The only output-size arithmetic, and the padded planes on which a strided convolution has stride 1.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <vector>

namespace prunekit {

struct ConvShape {
  int64_t n, c, h, w;           // input
  int64_t k, r, s, groups;      // filter: [k, c / groups, r, s]
  int64_t stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int64_t p, q;                 // output

  void set_output_size() {
    // So that no product below overflows before it is checked.
    for (const int64_t size : {h, w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, r, s}) {
      STD_TORCH_CHECK(
          size < int64_t{1} << 31, "prunekit expects sizes, strides, paddings and dilations below 2^31, got ", size);
    }
    const int64_t span_h = h + 2 * padding_h - dilation_h * (r - 1) - 1;
    const int64_t span_w = w + 2 * padding_w - dilation_w * (s - 1) - 1;
    STD_TORCH_CHECK(
        span_h >= 0 && span_w >= 0, "the dilated kernel ", r, "x", s, " does not fit the padded input ", h, "x", w);
    p = span_h / stride_h + 1;
    q = span_w / stride_w + 1;
  }
  int64_t channels_per_group() const { return c / groups; }
  int64_t rows_per_group() const { return k / groups; }
};

// One padded input channel is split into stride_h · stride_w phases: phase (a, b) holds the padded pixels
// (i · stride_h + a, j · stride_w + b) as a plane of `rows` × `pitch`. A tap is then one constant offset,
// and output pixel (i, j) sits at i · pitch + j for every tap: any stride and dilation run as stride 1.
struct PaddedPlanes {
  int64_t rows, pitch, plane, channel;  // sizes in elements
  std::vector<bool> is_phase_used;
  std::vector<int32_t> tap_offset;      // [channels_per_group · r · s], relative to the group's first channel

  explicit PaddedPlanes(const ConvShape& shape) {
    const int64_t reach_h = shape.dilation_h * (shape.r - 1), reach_w = shape.dilation_w * (shape.s - 1);
    rows = shape.p + reach_h / shape.stride_h;
    pitch = shape.q + reach_w / shape.stride_w;
    const int64_t phases = shape.stride_h * shape.stride_w;
    const double elements = 1.0 * rows * pitch * phases * (shape.channels_per_group() + 1);  // may pass 2^63
    STD_TORCH_CHECK(
        elements < INT32_MAX,
        "the padded input of one group has over 2^31 elements: use smaller images or more groups");
    plane = rows * pitch;
    channel = plane * phases;
    is_phase_used.assign(shape.stride_h * shape.stride_w, false);
    tap_offset.reserve(shape.channels_per_group() * shape.r * shape.s);
    for (int64_t c = 0; c < shape.channels_per_group(); ++c) {
      for (int64_t r = 0; r < shape.r; ++r) {
        for (int64_t s = 0; s < shape.s; ++s) {
          const int64_t y = r * shape.dilation_h, x = s * shape.dilation_w;
          const int64_t phase = (y % shape.stride_h) * shape.stride_w + x % shape.stride_w;
          is_phase_used[phase] = true;
          tap_offset.push_back(
              static_cast<int32_t>(c * channel + phase * plane + (y / shape.stride_h) * pitch + x / shape.stride_w));
        }
      }
    }
  }
  // Output pixels in flattened order, the dropped row ends included.
  int64_t flat_pixels(const ConvShape& shape) const { return (shape.p - 1) * pitch + shape.q; }
};

// Without padding and stride the input already is its padded planes.
inline bool is_unpadded(const ConvShape& shape) {
  return shape.stride_h == 1 && shape.stride_w == 1 && shape.padding_h == 0 && shape.padding_w == 0;
}

}  // namespace prunekit
