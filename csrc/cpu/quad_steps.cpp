// The steps of int8: convolutions, conversions and pools of quads.
#include "channel_step.h"
#include "instruction_sets.h"
#include "quad_kernels.h"
#include "tiled_conv.h"

namespace prunekit {

namespace {

void require_zero(int64_t zero) { require(zero >= 0 && zero <= 255, "a zero point"); }

class QuadConv : public TiledConv<QuadConvStep, QuadConvTile> {
 public:
  QuadConv(
      const QuadConvStep& s, const FilterLayout& f, const QuadKernels& quads, const Bounds& bounds, int64_t threads)
      : TiledConv(
            s, s.is_float ? f.out_channels : f.num_row_groups(), f.num_row_groups(), quads.max_vectors, bounds,
            threads),
        kernels_(quads.conv[s.reading]) {
    require(f.rows == QUAD_ROWS && f.groups == 1, "the rows and groups of a filter of quads");
    require(quads.lanes == bounds.lanes, "the lanes of quads");
    const auto none = static_cast<int64_t>(LaneActivation::NONE);
    require(s.before.activation == none || s.after.activation == none, "two activations");
    require_zero(s.residual_zero);
    require_zero(s.y_zero);
  }

 private:
  void complete(QuadConvTile& tile, int64_t) const override {
    tile.sums = s_.sums;
    tile.scales = s_.scales;
    tile.bias = s_.bias;
    tile.residual_scale = static_cast<float>(s_.residual_scale);
    tile.residual_zero = static_cast<int32_t>(s_.residual_zero);
    tile.is_float = s_.is_float != 0;
    tile.y_scale = static_cast<float>(s_.y_scale);
    tile.y_zero = static_cast<int32_t>(s_.y_zero);
  }
  void run_tile(const QuadConvTile& tile, int64_t vectors) const override { kernels_[vectors - 1](tile); }

  const QuadConvKernel* kernels_;
};

// A task is a range of quads.
class Conversion : public ChannelStep {
 public:
  Conversion(const QuantizeStep& s, bool is_back, const Bounds& bounds, int64_t threads)
      : ChannelStep(ceil_div(s.channels, QUAD_ROWS), 5 * s.vectors * bounds.lanes, threads), s_(s), is_back_(is_back) {
    require_aligned(s.mask);
    require_zero(s.zero);
    const int64_t quads = ceil_div(s.channels, QUAD_ROWS);
    bounds.contain_planes(s.x, s.x_channel, is_back ? quads : s.channels, s.vectors, "the input of a conversion");
    bounds.contain_planes(s.y, s.y_channel, is_back ? s.channels : quads, s.vectors, "the output of a conversion");
  }

 private:
  void run_channel(const LaneKernels&, const Memory& memory, int64_t c) const override {
    const int64_t x = is_back_ ? c : QUAD_ROWS * c, y = is_back_ ? QUAD_ROWS * c : c;
    const QuadConversion conversion{
        memory.arena + s_.x + x * s_.x_channel,
        s_.x_channel,
        memory.arena + s_.y + y * s_.y_channel,
        s_.y_channel,
        s_.vectors,
        std::min(QUAD_ROWS, s_.channels - QUAD_ROWS * c),
        static_cast<float>(s_.scale),
        static_cast<int32_t>(s_.zero),
        s_.mask};
    (is_back_ ? quads_.dequantize : quads_.quantize)(conversion);
  }

  const QuantizeStep s_;
  const bool is_back_;
  const QuadKernels& quads_ = quad_kernels();
};

class MaxPool : public ChannelStep {
 public:
  MaxPool(const QuadPoolStep& s, const Bounds& bounds, int64_t threads)
      : ChannelStep(s.channels, (s.num_taps + 1) * s.vectors * bounds.lanes, threads), s_(s) {
    require_aligned(s.mask);
    require_zero(s.zero);
    require(s.num_taps > 0, "a pool without taps");
    const auto [least, largest] = std::minmax_element(s.taps, s.taps + s.num_taps);
    require(*least >= 0 && s.row_vectors >= 0 && s.x_row >= 0, "a pool's taps or rows");
    const int64_t rows = ceil_div(s.vectors, row_vectors());
    const int64_t last = (rows - 1) * s.x_row / bounds.lanes + (row_vectors() - 1) * step() + *largest;
    bounds.contain_planes(s.x, s.x_channel, s.channels, last + 1, "the input of a pool");
    bounds.contain_planes(s.y, s.y_channel, s.channels, s.vectors, "the output of a pool");
  }

 private:
  void run_channel(const LaneKernels& kernels, const Memory& memory, int64_t c) const override {
    for (int64_t v = 0, row = 0; v < s_.vectors; v += row_vectors(), ++row) {
      const int64_t at = v * kernels.lanes;
      quads_.max_pool(
          {memory.arena + s_.x + c * s_.x_channel + row * s_.x_row, memory.arena + s_.y + c * s_.y_channel + at,
           std::min(row_vectors(), s_.vectors - v), s_.taps, s_.num_taps, step(), static_cast<int32_t>(s_.zero),
           s_.mask + at});
    }
  }
  int64_t row_vectors() const { return s_.row_vectors ? s_.row_vectors : s_.vectors; }
  int64_t step() const { return s_.row_vectors ? 2 : 1; }

  const QuadPoolStep s_;
  const QuadKernels& quads_ = quad_kernels();
};

}  // namespace

std::unique_ptr<Step> make_quad_conv_step(const int64_t* words, const Bounds& bounds, int64_t threads) {
  const auto s = read_words<QuadConvStep>(words);
  require(s.reading >= STEP1_OFFSETS16 && s.reading <= STEP2_OFFSETS32, "reading");
  const FilterLayout f = FilterLayout::read(s.index, s.index_words, s.num_values);
  return std::make_unique<QuadConv>(s, f, quad_kernels(), bounds, threads);
}

std::unique_ptr<Step> make_quad_channel_step(const int64_t* words, const Bounds& bounds, int64_t threads) {
  if (*words == QUAD_POOL) {
    return std::make_unique<MaxPool>(read_words<QuadPoolStep>(words), bounds, threads);
  }
  return std::make_unique<Conversion>(read_words<QuantizeStep>(words), *words == DEQUANTIZE, bounds, threads);
}

}  // namespace prunekit
