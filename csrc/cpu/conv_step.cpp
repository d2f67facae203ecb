#include "tiled_conv.h"

namespace prunekit {

namespace {

// Outputs of so many bytes do not wait in a cache for who reads them: YOLOv3's first, of 22 MiB, is written in half the
// time past a cache of 32 MiB, while the next of 11 MiB gain as much as their readers lose.
constexpr int64_t STREAMED_BYTES = int64_t{16} << 20;

// Before another thread may be told of what was streamed.
void fence_streams() {
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#endif
}

int row_choice(const ConvStep& s) {
  const int64_t rows = FilterLayout::read(s.index, s.index_words, s.num_values).rows;
  return rows == 1 ? 0 : rows == 2 ? 1 : 2;
}

class Conv : public TiledConv<ConvStep, LaneConvTile> {
 public:
  Conv(const ConvStep& s, int64_t out_channels, const LaneKernels& kernels, const Bounds& bounds, int64_t threads)
      : TiledConv(s, out_channels, out_channels, kernels.max_vectors[row_choice(s)], bounds, threads) {
    require(s.weights == FLOAT32_WEIGHTS || s.weights == BFLOAT16_WEIGHTS, "the type of its weights");
    is_streamed_ = out_channels * s.vectors * bounds.lanes * int64_t{sizeof(float)} >= STREAMED_BYTES;
    kernels_ = kernels.conv[s.weights][row_choice(s)][s.reading];
  }

 private:
  void complete(LaneConvTile& tile, int64_t first_row) const override {
    tile.bias = s_.bias ? s_.bias + first_row : nullptr;
    tile.is_streamed = is_streamed_;
  }
  void run_tile(const LaneConvTile& tile, int64_t vectors) const override { kernels_[vectors - 1](tile); }
  void end_task() const override {
    if (is_streamed_) {
      fence_streams();
    }
  }

  bool is_streamed_;
  const LaneConvKernel* kernels_;
};

}  // namespace

std::unique_ptr<Step> make_conv_step(
    const int64_t* words, const LaneKernels& kernels, const Bounds& bounds, int64_t threads) {
  const auto s = read_words<ConvStep>(words);
  const int64_t out_channels = FilterLayout::read(s.index, s.index_words, s.num_values).out_channels;
  return std::make_unique<Conv>(s, out_channels, kernels, bounds, threads);
}

}  // namespace prunekit
