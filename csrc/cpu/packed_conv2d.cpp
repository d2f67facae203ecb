// masked_conv2d and packed_conv2d on the CPU: checks, padded planes, tasks for torch's thread pool.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "../check.h"
#include "../conv_shape.h"
#include "../sparse_filter.h"
#include "instruction_sets.h"
#include "pack_filter.h"
#include "scratch.h"
#include "split_rows.h"

namespace prunekit {
namespace {

constexpr int64_t TASKS_PER_THREAD = 4;
// Accumulators rest in L2 between channel blocks: half of a 512 KB L2, the smallest of current server cores.
constexpr int64_t MAX_ACCUMULATOR_BYTES = 256 * 1024;
constexpr int64_t MIN_PARALLEL_ELEMENTS = 16 * 1024;

// Copy image x [C, H, W] into its padded planes: see PaddedPlanes.
template <typename T>
void pad_image(const ConvShape& shape, const PaddedPlanes& planes, const T* x, T* padded) {
  const int64_t grain = std::max<int64_t>(1, MIN_PARALLEL_ELEMENTS / planes.channel);
  torch::stable::parallel_for(0, shape.c, grain, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      for (int64_t phase = 0; phase < shape.stride_h * shape.stride_w; ++phase) {
        if (!planes.is_phase_used[phase]) {
          continue;
        }
        const int64_t top = phase / shape.stride_w - shape.padding_h, left = phase % shape.stride_w - shape.padding_w;
        // Columns j with 0 <= j · stride_w + left < w come from the image.
        const int64_t first = std::min(planes.pitch, left < 0 ? ceil_div(-left, shape.stride_w) : 0);
        const int64_t last =
            std::max(first, std::min(planes.pitch, left < shape.w ? ceil_div(shape.w - left, shape.stride_w) : 0));
        for (int64_t i = 0; i < planes.rows; ++i) {
          T* out = padded + c * planes.channel + phase * planes.plane + i * planes.pitch;
          const int64_t y = i * shape.stride_h + top;
          if (y < 0 || y >= shape.h) {
            std::fill(out, out + planes.pitch, T(0));
            continue;
          }
          const T* in = x + (c * shape.h + y) * shape.w + left;
          std::fill(out, out + first, T(0));
          if (shape.stride_w == 1) {
            std::copy(in + first, in + last, out + first);
          } else {
            for (int64_t j = first; j < last; ++j) {
              out[j] = in[j * shape.stride_w];
            }
          }
          std::fill(out + last, out + planes.pitch, T(0));
        }
      }
    }
  });
}

// Flattened pixels cut into blocks of at most max_vectors vectors, as even as can be.
struct PixelBlocks {
  int64_t lanes, flat_pixels, vectors, count;
  PixelBlocks(int64_t pixels, int64_t lanes, int64_t max_vectors)
      : lanes(lanes), flat_pixels(pixels), vectors(ceil_div(pixels, lanes)), count(ceil_div(vectors, max_vectors)) {}
  int64_t first_vector(int64_t block) const { return vectors * block / count; }
};

struct Epilogue {
  Activation activation;
  double negative_slope;
};

template <typename T>
struct Launch {
  const ConvShape& shape;
  const FilterLayout& filter;
  const PaddedPlanes& planes;
  const TileKernels<T>& kernels;
  const PixelBlocks blocks;
  const int32_t* index;
  const T* values;
  const T* bias;
  Epilogue epilogue;
  // Row-group bounds of every conv group.
  std::vector<std::vector<int64_t>> bounds;

  int64_t tile_elements() const { return filter.rows * blocks.lanes * ceil_div(blocks.vectors, blocks.count); }

  void split() {
    const int64_t num_threads = torch::stable::get_num_threads();
    const int64_t for_threads = ceil_div(num_threads * TASKS_PER_THREAD, shape.groups * blocks.count);
    const int64_t for_cache =
        ceil_div(filter.num_row_groups() * tile_elements() * static_cast<int64_t>(sizeof(T)), MAX_ACCUMULATOR_BYTES);
    const int64_t per_group = filter.num_channel_blocks() * filter.num_row_groups() * filter.segment_words();
    for (int64_t g = 0; g < shape.groups; ++g) {
      const int32_t* segments = index + HEADER_WORDS + g * per_group;
      const int64_t nnz_end = g + 1 == shape.groups ? index[NNZ] : segments[per_group + 1];
      bounds.push_back(split_rows(filter, segments, nnz_end, std::max(for_threads, for_cache)));
    }
  }

  // Run one image: `base` is its first padded channel. `is_overrun_safe`: reading past the last plane is allowed.
  void run(const T* base, bool is_overrun_safe, T* y) const {
    struct Task {
      int64_t group, part, block;
    };
    std::vector<Task> tasks;
    for (int64_t g = 0; g < shape.groups; ++g) {
      for (int64_t part = 0; part + 1 < static_cast<int64_t>(bounds[g].size()); ++part) {
        for (int64_t block = 0; block < blocks.count; ++block) {
          tasks.push_back({g, part, block});
        }
      }
    }
    torch::stable::parallel_for(0, tasks.size(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        run_task(tasks[t].group, tasks[t].part, tasks[t].block, base, is_overrun_safe, y);
      }
    });
  }

  void run_task(int64_t group, int64_t part, int64_t block, const T* base, bool is_overrun_safe, T* y) const {
    const int64_t segment_words = filter.segment_words();
    const int64_t per_group = filter.num_channel_blocks() * filter.num_row_groups() * segment_words;
    Tile<T> tile;
    tile.planes = base + group * shape.channels_per_group() * planes.channel;
    tile.tap_offset = planes.tap_offset.data();
    tile.segments = index + HEADER_WORDS + group * per_group;
    tile.ids = reinterpret_cast<const uint16_t*>(index + filter.ids_begin());
    tile.values = values;
    tile.segment_words = segment_words;
    tile.block_taps = filter.channel_block * filter.taps();
    tile.num_channel_blocks = filter.num_channel_blocks();
    tile.num_row_groups = filter.num_row_groups();
    tile.row_group_begin = bounds[group][part];
    tile.row_group_end = bounds[group][part + 1];
    tile.rows_per_group = shape.rows_per_group();
    tile.bias = bias ? bias + group * shape.rows_per_group() : nullptr;
    tile.activation = epilogue.activation;
    tile.negative_slope = static_cast<T>(epilogue.negative_slope);
    tile.accumulators = scratch<T>(1, (tile.row_group_end - tile.row_group_begin) * tile_elements());
    tile.y = y + group * shape.rows_per_group() * shape.p * shape.q;
    tile.y_plane = shape.p * shape.q;
    tile.pitch = planes.pitch;
    tile.q = shape.q;
    tile.store_from = blocks.first_vector(block) * blocks.lanes;
    tile.vectors = blocks.first_vector(block + 1) - blocks.first_vector(block);
    tile.end = blocks.flat_pixels;
    // At the end of the caller's own memory the last block moves back and stores only what is new.
    const int64_t overrun = tile.store_from + tile.vectors * blocks.lanes - blocks.flat_pixels;
    tile.first = tile.store_from - (is_overrun_safe ? 0 : std::max<int64_t>(0, overrun));
    (filter.rows == 1 ? kernels.run_rows1 : kernels.run_rows4)(tile);
  }
};

template <typename T>
void convolve(
    const ConvShape& shape, const FilterLayout& filter, const TileKernels<T>& kernels, const T* x, const int32_t* index,
    const T* values, const T* bias, Epilogue epilogue, T* y) {
  const PaddedPlanes planes(shape);
  const PixelBlocks blocks(
      planes.flat_pixels(shape), kernels.lanes,
      filter.rows == 1 ? kernels.max_vectors_rows1 : kernels.max_vectors_rows4);
  Launch<T> launch{shape, filter, planes, kernels, blocks, index, values, bias, epilogue, {}};
  launch.split();
  const int64_t last_vectors = blocks.vectors - blocks.first_vector(blocks.count - 1);
  const bool is_in_place = is_unpadded(shape) && last_vectors * blocks.lanes <= blocks.flat_pixels;
  const int64_t slack = blocks.lanes * (blocks.vectors + 1) - blocks.flat_pixels;
  T* padded = nullptr;
  try {
    padded = is_in_place ? nullptr : scratch<T>(0, shape.c * planes.channel + slack);
  } catch (const std::bad_alloc&) {
    STD_TORCH_CHECK(
        false, "prunekit: there is no memory for a padded image of ", shape.c * planes.channel, " elements");
  }
  for (int64_t n = 0; n < shape.n; ++n) {
    const T* image = x + n * shape.c * shape.h * shape.w;
    if (!is_in_place) {
      pad_image(shape, planes, image, padded);
    }
    launch.run(is_in_place ? image : padded, !is_in_place, y + n * shape.k * shape.p * shape.q);
  }
}

ConvShape make_shape(
    const Tensor& x, const FilterLayout& f, const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
    const std::vector<int64_t>& dilation, int64_t groups) {
  STD_TORCH_CHECK(
      x.dim() == 4 && x.size(1) == f.group_channels * f.groups && groups == f.groups,
      "the packed filter expects x [N, ", f.group_channels * f.groups, ", H, W] and groups ", f.groups, ", got ",
      shape_of(x), " and groups ", groups);
  for (const auto* pair : {&stride, &padding, &dilation}) {
    const int64_t least = pair == &padding ? 0 : 1;
    STD_TORCH_CHECK(
        pair->size() == 2 && (*pair)[0] >= least && (*pair)[1] >= least,
        "stride and dilation must be two numbers of at least 1, padding two of at least 0");
  }
  ConvShape shape{x.size(0), x.size(1), x.size(2),  x.size(3),  f.out_channels, f.kernel_h,  f.kernel_w, f.groups,
                  stride[0], stride[1], padding[0], padding[1], dilation[0],    dilation[1], 0,          0};
  shape.set_output_size();
  return shape;
}

Epilogue make_epilogue(const std::string& activation, double negative_slope) {
  STD_TORCH_CHECK(
      activation == "none" || activation == "leaky_relu", "activation must be \"none\" or \"leaky_relu\", got \"",
      activation, "\"");
  return {activation == "none" ? Activation::NONE : Activation::LEAKY_RELU, negative_slope};
}

}  // namespace

Tensor packed_conv2d(
    const Tensor& x, const Tensor& index, const Tensor& values, const std::optional<Tensor>& bias,
    const std::vector<int64_t>& weight_shape, const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
    const std::vector<int64_t>& dilation, int64_t groups, const std::string& activation, double negative_slope) {
  check_cpu(x, "x");
  check_cpu(index, "index");
  check_cpu(values, "values");
  STD_TORCH_CHECK(
      index.scalar_type() == ScalarType::Int && index.is_contiguous() && values.is_contiguous() &&
          values.scalar_type() == x.scalar_type(),
      "the packed filter must be a contiguous int32 index and contiguous values of x's dtype");
  const FilterLayout filter = FilterLayout::read(index.const_data_ptr<int32_t>(), index.numel(), values.numel());
  STD_TORCH_CHECK(filter.rows != 2, "packed_conv2d runs filters packed with 1 or 4 rows; 2 are for plans");
  STD_TORCH_CHECK(
      weight_shape ==
          (std::vector<int64_t>{filter.out_channels, filter.group_channels, filter.kernel_h, filter.kernel_w}),
      "weight_shape is not the shape of the filter that was packed");
  const ConvShape shape = make_shape(x, filter, stride, padding, dilation, groups);
  if (bias) {
    check_bias(*bias, filter.out_channels, x.scalar_type());
  }
  const Tensor dense_x = allocated(x, [&] { return torch::stable::contiguous(x); });
  const Tensor dense_bias = bias ? torch::stable::contiguous(*bias) : values;
  Tensor y = allocated(x, [&] { return torch::stable::new_empty(x, {shape.n, shape.k, shape.p, shape.q}); });
  auto launch = [&](auto zero, const auto& kernels) {
    using T = decltype(zero);
    convolve<T>(
        shape, filter, kernels, dense_x.const_data_ptr<T>(), index.const_data_ptr<int32_t>(),
        values.const_data_ptr<T>(), bias ? dense_bias.const_data_ptr<T>() : nullptr,
        make_epilogue(activation, negative_slope), y.mutable_data_ptr<T>());
  };
  if (x.scalar_type() == ScalarType::Float) {
    launch(0.0f, instruction_set().f32);
  } else {
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Double, "packed_conv2d runs float32 and float64");
    launch(0.0, instruction_set().f64);
  }
  return is_channels_last(x) ? as_channels_last(y) : y;
}

Tensor masked_conv2d(
    const Tensor& x, const Tensor& weight, const Tensor& mask, const std::optional<Tensor>& bias,
    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
    int64_t groups) {
  const ScalarType dtype = x.scalar_type();
  if (dtype == ScalarType::Half || dtype == ScalarType::BFloat16) {
    // Narrow types accumulate in float32 and round once.
    const auto wide = [](const Tensor& t) { return torch::stable::to(t, ScalarType::Float); };
    const std::optional<Tensor> wide_bias = bias ? std::optional<Tensor>(wide(*bias)) : std::nullopt;
    return torch::stable::to(
        masked_conv2d(wide(x), wide(weight), mask, wide_bias, stride, padding, dilation, groups), dtype);
  }
  const auto [index, values] = pack_filter(weight, mask, groups, 0, 0);
  const Tensor y = packed_conv2d(
      x, index, values, bias, {weight.size(0), weight.size(1), weight.size(2), weight.size(3)}, stride, padding,
      dilation, groups, "none", 0.0);
  return is_channels_last(weight) ? as_channels_last(y) : y;
}

STABLE_TORCH_LIBRARY_IMPL(prunekit, CPU, m) {
  m.impl("masked_conv2d", TORCH_BOX(&masked_conv2d));
  m.impl("packed_conv2d", TORCH_BOX(&packed_conv2d));
}

}  // namespace prunekit
