#include <algorithm>

#include "channel_step.h"

namespace prunekit {

namespace {

class Halo : public ChannelStep {
 public:
  Halo(const HaloStep& s, const Bounds& bounds, int64_t threads)
      : ChannelStep(s.channels, 4 * (s.front + s.back) * bounds.lanes, threads), s_(s) {
    require(s.front >= 0 && s.back >= 0 && s.vectors > 0, "a halo's size");
    bounds.contain_planes(s.y, s.y_channel, s.channels, s.vectors + s.back, "a halo");
    bounds.contain(s.y - s.front * bounds.lanes, s.y, "a halo's front");
  }
  void run_channel(const LaneKernels& kernels, const Memory& memory, int64_t c) const override {
    kernels.halo(memory.arena + s_.y + c * s_.y_channel, s_.vectors, s_.front, s_.back, element_of(s_.fill));
  }

 private:
  const HaloStep s_;
};

// The longest runs of `columns`, and one behind them that begins at `count`.
std::vector<ColumnRun> column_runs(const int32_t* columns, int64_t count) {
  std::vector<ColumnRun> runs;
  const auto size = static_cast<int32_t>(count);
  for (int32_t begin = 0, end; begin < size; begin = end) {
    const int32_t first = columns[begin];
    for (end = begin + 1; end < size && columns[end] == first; ++end) {
    }
    const int32_t repeat = first < 0 ? 1 : end - begin, step = end < size ? std::max(columns[end] - first, 1) : 1;
    while (first >= 0 && end < size && columns[end] == first + (end - begin) / repeat * step) {
      ++end;
    }
    runs.push_back({begin, end, first, step, repeat});
  }
  runs.push_back({size, size, -1, 1, 1});
  return runs;
}

class Remap : public ChannelStep {
 public:
  Remap(const RemapStep& s, const Bounds& bounds, int64_t num_inputs, int64_t num_outputs, int64_t threads)
      : ChannelStep(s.channels, 8 * s.planes * s.length, threads), s_(s) {
    require(s.channels > 0 && s.planes > 0 && s.num_rows > 0 && s.length > 0, "a remap's size");
    require(s.x_channel >= 0 && s.y_channel >= 0 && s.plane >= 0 && s.x_pitch > 0 && s.y_pitch > 0, "a remap's size");
    require(s.y_pitch < INT32_MAX && s.num_rows == ceil_div(s.length, s.y_pitch), "a remap's rows");
    require(s.x_vectors >= 0 && s.y_vectors >= 0 && s.y_back >= 0, "a remap's lanes");
    require(s.input >= IN_ARENA && s.input < num_inputs && s.output >= IN_ARENA && s.output < num_outputs, "a remap");
    const int64_t last_row = *std::max_element(s.rows, s.rows + s.planes * s.num_rows);
    const int64_t last_column = *std::max_element(s.columns, s.columns + s.planes * s.y_pitch);
    const int64_t x_elements = std::max<int64_t>(0, last_row * s.x_pitch + last_column + 1);
    if (s.x_vectors) {
      require(s.input == IN_ARENA && x_elements <= s.x_vectors * bounds.lanes, "the rows and columns of a remap");
      bounds.contain_planes(s.x, s.x_channel, s.channels, s.x_vectors, "the input of a remap");
    } else if (s.input == IN_ARENA) {
      bounds.contain(s.x, s.x + (s.channels - 1) * s.x_channel + x_elements, "the input of a remap");
    }
    const int64_t y_elements = s.y_vectors ? (s.y_vectors + s.y_back) * bounds.lanes : s.length;
    require(!s.y_vectors || s.length == s.y_vectors * bounds.lanes + s.y_back, "a remap's pixels");
    if (s.output == IN_ARENA) {
      require(
          !s.y_vectors || (s.y % bounds.lanes | s.y_channel % bounds.lanes | s.plane % bounds.lanes) == 0, "a remap");
      bounds.contain(
          s.y, s.y + (s.channels - 1) * s.y_channel + (s.planes - 1) * s.plane + y_elements, "the output of a remap");
    }
    for (int64_t plane = 0; plane < s.planes; ++plane) {
      runs_.push_back(column_runs(s.columns + plane * s.y_pitch, s.y_pitch));
    }
    for (const auto& runs : runs_) {
      run_pointers_.push_back(runs.data());
    }
  }
  int64_t scratch_elements(int slot, int64_t lanes) const override {
    return slot != PLANAR_SLOT ? 0 : s_.x_vectors * lanes + s_.length + 2 * REMAP_SPARE;
  }
  void run_channel(const LaneKernels& kernels, const Memory& memory, int64_t c) const override {
    const int64_t planar = s_.x_vectors * kernels.lanes + REMAP_SPARE;
    float* buffer = scratch<float>(PLANAR_SLOT, scratch_elements(PLANAR_SLOT, kernels.lanes));
    kernels.remap(
        {(s_.input == IN_ARENA ? memory.arena : memory.inputs[s_.input]) + s_.x + c * s_.x_channel, s_.x_vectors,
         s_.x_pitch, (s_.output == IN_ARENA ? memory.arena : memory.outputs[s_.output]) + s_.y + c * s_.y_channel,
         s_.y_vectors, s_.y_pitch, s_.y_back, s_.plane, s_.planes, s_.num_rows, s_.length, s_.rows,
         run_pointers_.data(), element_of(s_.fill), buffer, buffer + planar});
  }

 private:
  const RemapStep s_;
  std::vector<std::vector<ColumnRun>> runs_;
  std::vector<const ColumnRun*> run_pointers_;
};

class Elementwise : public ChannelStep {
 public:
  Elementwise(const ElementwiseStep& s, const Bounds& bounds, int64_t threads)
      : ChannelStep(s.channels, 2 * s.vectors * bounds.lanes, threads), s_(s), epilogue_(epilogue_of(s.epilogue)) {
    require_aligned(s.mask);
    require(s.channels > 0, "an elementwise step's channels");
    int64_t last = s.channels - 1;
    if (s.picks) {
      const auto [least, largest] = std::minmax_element(s.picks, s.picks + s.channels);
      require(*least >= 0, "the channels of an elementwise step");
      last = *largest;
    }
    bounds.contain_planes(s.x, s.x_channel, last + 1, s.vectors, "the input of an elementwise step");
    bounds.contain_planes(s.y, s.y_channel, s.channels, s.vectors, "the output of an elementwise step");
    if (s.other >= 0) {
      bounds.contain_planes(s.other, s.other_channel, s.channels, s.vectors, "the other input");
    }
    if (s.scale_at >= 0) {
      bounds.contain_planes(s.scale_at, s.scale_channel, s.channels, 1, "the scale of an elementwise step");
    }
    if (s.shift_at >= 0) {
      bounds.contain_planes(s.shift_at, s.shift_channel, s.channels, 1, "the shift of an elementwise step");
    }
  }
  void run_channel(const LaneKernels& kernels, const Memory& memory, int64_t c) const override {
    const float* other = s_.other < 0 ? nullptr : memory.arena + s_.other + c * s_.other_channel;
    auto pixel = [&](const float* constants, int64_t at, int64_t step, float otherwise) {
      return constants ? constants[c] : at >= 0 ? memory.arena[at + c * step] : otherwise;
    };
    const float scale = pixel(s_.scale, s_.scale_at, s_.scale_channel, 1.0f);
    const float shift = pixel(s_.shift, s_.shift_at, s_.shift_channel, 0.0f);
    kernels.elementwise(
        {memory.arena + s_.x + (s_.picks ? s_.picks[c] : c) * s_.x_channel, other,
         memory.arena + s_.y + c * s_.y_channel, s_.vectors, s_.is_product != 0,
         scale * static_cast<float>(s_.scale_factor), shift * static_cast<float>(s_.shift_factor), epilogue_, s_.mask});
  }

 private:
  const ElementwiseStep s_;
  const LaneEpilogue epilogue_;
};

class Pool : public ChannelStep {
 public:
  Pool(const PoolStep& s, const Bounds& bounds, int64_t threads)
      : ChannelStep(s.channels, (s.num_taps + 1) * s.vectors * bounds.lanes, threads), s_(s) {
    require_aligned(s.mask);
    require(reinterpret_cast<uintptr_t>(s.scales) % CACHE_LINE == 0, "a pool's scales that are not aligned");
    require(s.num_taps > 0, "a pool without taps");
    const auto [least, largest] = std::minmax_element(s.taps, s.taps + s.num_taps);
    require(*least >= 0, "a pool's taps");
    require(s.row_vectors >= 0 && s.x_row >= 0, "a pool's rows");
    const int64_t rows = ceil_div(s.vectors, row_vectors());
    const int64_t last = (rows - 1) * s.x_row / bounds.lanes + (row_vectors() - 1) * step() + *largest;
    bounds.contain_planes(s.x, s.x_channel, s.channels, last + 1, "the input of a pool");
    bounds.contain_planes(s.y, s.y_channel, s.channels, s.vectors, "the output of a pool");
  }
  void run_channel(const LaneKernels& kernels, const Memory& memory, int64_t c) const override {
    for (int64_t v = 0, row = 0; v < s_.vectors; v += row_vectors(), ++row) {
      const int64_t at = v * kernels.lanes;
      kernels.pool(
          {memory.arena + s_.x + c * s_.x_channel + row * s_.x_row, memory.arena + s_.y + c * s_.y_channel + at,
           std::min(row_vectors(), s_.vectors - v), s_.taps, s_.num_taps, step(), s_.is_max != 0,
           s_.scales ? s_.scales + at : nullptr, static_cast<float>(s_.scale), s_.mask + at});
    }
  }

 private:
  int64_t row_vectors() const { return s_.row_vectors ? s_.row_vectors : s_.vectors; }
  int64_t step() const { return s_.row_vectors ? 2 : 1; }

  const PoolStep s_;
};

class Mean : public ChannelStep {
 public:
  Mean(const MeanStep& s, const Bounds& bounds, int64_t threads)
      : ChannelStep(s.channels, s.vectors * bounds.lanes, threads), s_(s) {
    bounds.contain_planes(s.x, s.x_channel, s.channels, s.vectors, "the input of a mean");
    bounds.contain_planes(s.y, s.y_channel, s.channels, 1, "the output of a mean");
  }
  void run_channel(const LaneKernels& kernels, const Memory& memory, int64_t c) const override {
    kernels.mean(
        memory.arena + s_.x + c * s_.x_channel, s_.vectors, static_cast<float>(s_.scale),
        memory.arena + s_.y + c * s_.y_channel);
  }

 private:
  const MeanStep s_;
};

class Shift : public ChannelStep {
 public:
  Shift(const ShiftStep& s, const Bounds& bounds, int64_t threads)
      : ChannelStep(s.channels, 2 * s.num_copies * s.vectors * bounds.lanes, threads), s_(s) {
    require_aligned(s.masks);
    require(s.num_copies > 0 && s.num_copies < INT32_MAX && s.vectors > 0 && s.vectors < INT32_MAX, "a shift's size");
    bounds.contain_planes(s.x, s.x_channel, s.channels, s.vectors, "the input of a shift");
    bounds.contain_planes(s.y, s.y_channel, s.channels, s.num_copies * s.vectors, "the output of a shift");
  }
  void run_channel(const LaneKernels& kernels, const Memory& memory, int64_t c) const override {
    kernels.shifts(
        {memory.arena + s_.x + c * s_.x_channel, memory.arena + s_.y + c * s_.y_channel, s_.vectors, s_.num_copies,
         s_.shifts, s_.masks});
  }

 private:
  const ShiftStep s_;
};

}  // namespace

std::unique_ptr<Step> make_channel_step(
    const int64_t* words, const Bounds& bounds, int64_t num_inputs, int64_t num_outputs, int64_t threads) {
  switch (*words) {
    case HALO:
      return std::make_unique<Halo>(read_words<HaloStep>(words), bounds, threads);
    case REMAP:
      return std::make_unique<Remap>(read_words<RemapStep>(words), bounds, num_inputs, num_outputs, threads);
    case ELEMENTWISE:
      return std::make_unique<Elementwise>(read_words<ElementwiseStep>(words), bounds, threads);
    case POOL:
      return std::make_unique<Pool>(read_words<PoolStep>(words), bounds, threads);
    case MEAN:
      return std::make_unique<Mean>(read_words<MeanStep>(words), bounds, threads);
    case SHIFT:
      return std::make_unique<Shift>(read_words<ShiftStep>(words), bounds, threads);
    case QUANTIZE:
    case DEQUANTIZE:
    case QUAD_POOL:
      return make_quad_channel_step(words, bounds, threads);
  }
  require(false, "unknown kind");
  return nullptr;
}

}  // namespace prunekit
