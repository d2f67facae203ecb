#include "plan.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../check.h"
#include "../sparse_filter.h"
#include "instruction_sets.h"
#include "scratch.h"
#include "split_rows.h"

namespace prunekit {

// Zeroed memory in huge pages where the system has them: a tile touches a page per channel.
struct Arena {
  explicit Arena(int64_t elements) {
    constexpr size_t HUGE_PAGE = size_t{1} << 21;
    if (elements > INT64_MAX / 8) {
      throw std::bad_alloc();
    }
    const size_t bytes = ceil_div(std::max<int64_t>(elements, 1) * sizeof(float), HUGE_PAGE) * HUGE_PAGE;
    data = static_cast<float*>(std::aligned_alloc(HUGE_PAGE, bytes));
    if (!data) {
      throw std::bad_alloc();
    }
#if defined(__linux__)
    madvise(data, bytes, MADV_HUGEPAGE);
#endif
    std::memset(static_cast<void*>(data), 0, bytes);
  }
  ~Arena() { std::free(data); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  float* data;
};

// What a task sees: the arena, and one image of every input and output.
struct Memory {
  float* arena;
  std::vector<const float*> inputs;
  std::vector<float*> outputs;
};

struct Step {
  virtual ~Step() = default;
  virtual int64_t num_tasks() const = 0;
  // What a task takes from a slot of scratch memory: a thread has it before it begins, because a task that ran out of
  // memory would be waited for.
  virtual int64_t scratch_elements(int slot, int64_t lanes) const { return 0; }
  virtual void run(const LaneKernels& kernels, const Memory& memory, int64_t task) const = 0;
};

namespace {

constexpr int64_t TASKS_PER_THREAD = 4;
// About what a task of a memory-bound step should move at least; smaller ones cost more to hand out than to do.
constexpr int64_t MIN_TASK_ELEMENTS = 16 * 1024;
constexpr int SPINS_BEFORE_YIELD = 4096;
// Outputs of so many bytes do not wait in a cache for who reads them: YOLOv3's first, of 22 MiB, is written in half the
// time past a cache of 32 MiB, while the next of 11 MiB gain as much as their readers lose.
constexpr int64_t STREAMED_BYTES = int64_t{16} << 20;

// Before another thread may be told of what was streamed.
void fence_streams() {
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#endif
}

// Of scratch memory.
constexpr int PLANAR_SLOT = 0, SUMS_SLOT = 1;

void require(bool is_good, const char* what) { STD_TORCH_CHECK(is_good, "a plan's step is damaged: ", what); }

// Masks are read as vectors.
void require_aligned(const int32_t* mask) {
  require(reinterpret_cast<uintptr_t>(mask) % CACHE_LINE == 0, "a mask that is not aligned");
}

LaneEpilogue epilogue_of(const EpilogueWords& words) {
  require(words.activation >= 0 && words.activation <= int64_t(LaneActivation::HARDSWISH), "unknown activation");
  return {static_cast<LaneActivation>(words.activation), static_cast<float>(words.negative_slope)};
}

// Elements [first, first + count) of the arena.
struct Bounds {
  int64_t arena_elements, lanes;
  void contain(int64_t first, int64_t last, const char* what) const {
    require(first >= 0 && last <= arena_elements && first <= last, what);
  }
  // `channels` planes of `vectors` vectors.
  void contain_planes(int64_t at, int64_t channel, int64_t channels, int64_t vectors, const char* what) const {
    require(channels > 0 && vectors > 0 && channel >= 0 && at % lanes == 0 && channel % lanes == 0, what);
    contain(at, at + (channels - 1) * channel + vectors * lanes, what);
  }
};

class Conv : public Step {
 public:
  Conv(const ConvStep& s, const LaneKernels& kernels, const Bounds& bounds, int64_t threads)
      : s_(s), filter_(FilterLayout::read(s.index, s.index_words, s.num_values)), threads_(threads) {
    const FilterLayout& f = filter_;
    row_choice_ = f.rows == 1 ? 0 : f.rows == 2 ? 1 : 2;
    require(s.tile_vectors >= 1 && s.tile_vectors <= kernels.max_vectors[row_choice_], "tile too long");
    require(s.row_parts <= f.out_channels && s.repeats <= INT32_MAX, "row parts or repeats");
    require(s.row_parts >= 1 && s.reading >= STEP1_OFFSETS16 && s.reading <= STEP2_OFFSETS32, "row parts or reading");
    require(s.weights == FLOAT32_WEIGHTS || s.weights == BFLOAT16_WEIGHTS, "the type of its weights");
    require_aligned(s.mask);
    require(s.x_row >= 0 && s.row_vectors >= 0 && (s.row_vectors == 0) == (s.reading != STEP2_OFFSETS32), "a row's vectors");
    bounds.contain_planes(s.y, s.y_channel, f.out_channels, s.vectors, "the output of a convolution");
    if (s.residual >= 0) {
      bounds.contain_planes(s.residual, s.residual_channel, f.out_channels, s.vectors, "the residual");
    }
    require(s.x % bounds.lanes == 0 && s.x_channel % bounds.lanes == 0 && s.x_channel >= 0, "unaligned input");
    check_offsets(bounds);
    before_ = epilogue_of(s.before);
    after_ = epilogue_of(s.after);
    segments_ = s.index + HEADER_WORDS;
    group_words_ = f.num_channel_blocks() * f.num_row_groups() * f.segment_words();
    for (int64_t g = 0; g < f.groups; ++g) {
      const int64_t nnz_end = g + 1 < f.groups ? segments_[(g + 1) * group_words_ + 1] : s.num_values;
      row_bounds_.push_back(split_rows(f, segments_ + g * group_words_, nnz_end, s.row_parts));
    }
    require(s.repeats >= 1 && (s.repeats == 1 || f.num_channel_blocks() == 1), "repeats with channel blocks");
    tiles_a_row_ = ceil_div(row_vectors(), s.tile_vectors * s.repeats);
    tiles_ = tiles_a_row_ * ceil_div(s.vectors, row_vectors());
    for (int64_t g = 0; g < f.groups; ++g) {
      for (size_t part = 0; part + 1 < row_bounds_[g].size(); ++part) {
        parts_.push_back({g, row_bounds_[g][part], row_bounds_[g][part + 1]});
        longest_part_ = std::max(longest_part_, parts_.back().end - parts_.back().begin);
      }
    }
    is_streamed_ = f.out_channels * s.vectors * bounds.lanes * int64_t{sizeof(float)} >= STREAMED_BYTES;
    units_ = static_cast<int64_t>(parts_.size()) * tiles_;
    units_per_task_ = std::max<int64_t>(1, units_ / (TASKS_PER_THREAD * 4 * threads_));
  }

  // Sums rest in scratch memory between channel blocks; with one block a row group's sums are enough.
  int64_t scratch_elements(int slot, int64_t lanes) const override {
    return slot != SUMS_SLOT ? 0 : (filter_.num_channel_blocks() > 1 ? longest_part_ : 1) * filter_.rows * s_.tile_vectors * lanes;
  }
  int64_t num_tasks() const override { return ceil_div(units_, units_per_task_); }

  void run(const LaneKernels& kernels, const Memory& memory, int64_t task) const override {
    const FilterLayout& f = filter_;
    const int64_t end = std::min(units_, (task + 1) * units_per_task_);
    for (int64_t unit = task * units_per_task_; unit < end; ++unit) {
      const int64_t pixel = unit / static_cast<int64_t>(parts_.size());
      const Part& part = parts_[unit % static_cast<int64_t>(parts_.size())];
      const int64_t row = pixel / tiles_a_row_, column = pixel % tiles_a_row_;
      const int64_t begin = column * s_.tile_vectors * s_.repeats;
      const int64_t vectors = std::min(row_vectors() - begin, s_.tile_vectors * s_.repeats);
      const int64_t first = row * row_vectors() + begin;
      const int64_t first_row = part.group * f.rows_per_group();
      LaneConvTile tile;
      tile.x = memory.arena + s_.x + part.group * f.group_channels * s_.x_channel + row * s_.x_row +
          begin * step() * kernels.lanes;
      tile.segments = segments_ + part.group * group_words_;
      tile.offsets = s_.offsets;
      tile.values = s_.values;
      tile.segment_words = f.segment_words();
      tile.num_row_groups = f.num_row_groups();
      tile.num_channel_blocks = f.num_channel_blocks();
      tile.block_stride = f.channel_block * s_.x_channel;
      tile.row_group_begin = part.begin;
      tile.row_group_end = part.end;
      tile.rows_per_group = f.rows_per_group();
      tile.bias = s_.bias ? s_.bias + first_row : nullptr;
      tile.residual = s_.residual < 0
          ? nullptr
          : memory.arena + s_.residual + first_row * s_.residual_channel + first * kernels.lanes;
      tile.residual_channel = s_.residual_channel;
      tile.before = before_;
      tile.after = after_;
      tile.mask = s_.mask + first * kernels.lanes;
      tile.accumulators = scratch<float>(SUMS_SLOT, scratch_elements(SUMS_SLOT, kernels.lanes));
      tile.y = memory.arena + s_.y + first_row * s_.y_channel + first * kernels.lanes;
      tile.y_channel = s_.y_channel;
      tile.is_streamed = is_streamed_;
      const LaneConvKernel* kernel = kernels.conv[s_.weights][row_choice_][s_.reading];
      tile.repeats = vectors / s_.tile_vectors;
      if (tile.repeats > 0) {
        kernel[s_.tile_vectors - 1](tile);
      }
      const int64_t done = tile.repeats * s_.tile_vectors;
      if (done < vectors) {
        tile.repeats = 1;
        tile.x += done * step() * kernels.lanes;
        tile.y += done * kernels.lanes;
        tile.mask += done * kernels.lanes;
        tile.residual += tile.residual ? done * kernels.lanes : 0;
        kernel[vectors - done - 1](tile);
      }
    }
    if (is_streamed_) {
      fence_streams();
    }
  }

 private:
  struct Part {
    int64_t group, begin, end;
  };

  int64_t row_vectors() const { return s_.row_vectors ? s_.row_vectors : s_.vectors; }
  int64_t step() const { return s_.reading == STEP2_OFFSETS32 ? 2 : 1; }

  // The ids of a channel block follow each other; an offset is relative to the block's first channel.
  void check_offsets(const Bounds& bounds) const {
    const FilterLayout& f = filter_;
    const int64_t block_words = f.num_row_groups() * f.segment_words();
    for (int64_t block = 0; block < f.groups * f.num_channel_blocks(); ++block) {
      const int32_t* segment = s_.index + HEADER_WORDS + block * block_words;
      const bool is_last = block + 1 == f.groups * f.num_channel_blocks();
      const int64_t begin = segment[0], end = is_last ? s_.index[NUM_IDS] : segment[block_words];
      int64_t largest = 0;
      for (int64_t i = begin; i < end; ++i) {
        largest = std::max<int64_t>(
            largest, s_.reading == STEP1_OFFSETS16 ? static_cast<const uint16_t*>(s_.offsets)[i]
                                                   : static_cast<const uint32_t*>(s_.offsets)[i]);
      }
      const int64_t channel =
          block / f.num_channel_blocks() * f.group_channels + block % f.num_channel_blocks() * f.channel_block;
      const int64_t first = s_.x + channel * s_.x_channel;
      const int64_t rows = ceil_div(s_.vectors, row_vectors());
      const int64_t last = (rows - 1) * s_.x_row + (row_vectors() - 1) * step() * bounds.lanes;
      bounds.contain(first, first + last + (largest + 1) * bounds.lanes, "the taps of a convolution");
    }
  }

  const ConvStep s_;
  const FilterLayout filter_;
  const int64_t threads_;
  int row_choice_;
  bool is_streamed_;
  const int32_t* segments_;
  int64_t group_words_, tiles_a_row_, tiles_, units_, units_per_task_, longest_part_ = 0;
  LaneEpilogue before_, after_;
  std::vector<std::vector<int64_t>> row_bounds_;
  std::vector<Part> parts_;
};

// Steps that treat each channel by itself: a task is a range of channels.
class ChannelStep : public Step {
 public:
  ChannelStep(int64_t channels, int64_t elements_a_channel, int64_t threads)
      : channels_(channels),
        channels_a_task_(std::max<int64_t>(
            {1, MIN_TASK_ELEMENTS / std::max<int64_t>(1, elements_a_channel),
             channels / (TASKS_PER_THREAD * threads)})) {}
  int64_t num_tasks() const override { return ceil_div(channels_, channels_a_task_); }
  void run(const LaneKernels& kernels, const Memory& memory, int64_t task) const override {
    const int64_t end = std::min(channels_, (task + 1) * channels_a_task_);
    for (int64_t c = task * channels_a_task_; c < end; ++c) {
      run_channel(kernels, memory, c);
    }
  }

 protected:
  virtual void run_channel(const LaneKernels& kernels, const Memory& memory, int64_t channel) const = 0;

 private:
  const int64_t channels_, channels_a_task_;
};

class Halo : public ChannelStep {
 public:
  Halo(const HaloStep& s, const Bounds& bounds, int64_t threads)
      : ChannelStep(s.channels, 4 * (s.front + s.back) * bounds.lanes, threads), s_(s) {
    require(s.front >= 0 && s.back >= 0 && s.vectors > 0, "a halo's size");
    bounds.contain_planes(s.y, s.y_channel, s.channels, s.vectors + s.back, "a halo");
    bounds.contain(s.y - s.front * bounds.lanes, s.y, "a halo's front");
  }
  void run_channel(const LaneKernels& kernels, const Memory& memory, int64_t c) const override {
    kernels.halo(memory.arena + s_.y + c * s_.y_channel, s_.vectors, s_.front, s_.back);
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
      require(!s.y_vectors || (s.y % bounds.lanes | s.y_channel % bounds.lanes | s.plane % bounds.lanes) == 0, "a remap");
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
         run_pointers_.data(), static_cast<float>(s_.fill), buffer, buffer + planar});
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
    bounds.contain_planes(s.x, s.x_channel, s.channels, s.vectors, "the input of an elementwise step");
    bounds.contain_planes(s.y, s.y_channel, s.channels, s.vectors, "the output of an elementwise step");
    if (s.other >= 0) {
      bounds.contain_planes(s.other, s.other_channel, s.channels, s.vectors, "the other input");
    }
  }
  void run_channel(const LaneKernels& kernels, const Memory& memory, int64_t c) const override {
    const float* other = s_.other < 0 ? nullptr : memory.arena + s_.other + c * s_.other_channel;
    kernels.elementwise(
        {memory.arena + s_.x + c * s_.x_channel, other, memory.arena + s_.y + c * s_.y_channel, s_.vectors,
         s_.scale ? s_.scale[c] : 1.0f, s_.shift ? s_.shift[c] : 0.0f, epilogue_, s_.mask});
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
           static_cast<float>(s_.scale), s_.mask + at});
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

template <typename T>
T read_words(const int64_t* words) {
  static_assert(sizeof(T) <= (STEP_WORDS - 1) * sizeof(int64_t), "a step has too many fields");
  T fields;
  std::memcpy(&fields, words + 1, sizeof fields);
  return fields;
}

// Denormals are flushed to zero while a plan runs, and the thread's setting is put back afterwards.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : saved_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(saved_ | 0x8040); }
  ~FlushDenormals() { __builtin_ia32_ldmxcsr(saved_); }

 private:
  unsigned saved_;
#endif
};

int64_t nanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

struct Progress {
  std::atomic<int64_t> next{0}, done{0};
};

// Take tasks of each step until none is left, then wait for those that others still work on. A participant never waits
// for one that has not begun, so any number of them, one after the other or at once, finishes the steps.
void participate(
    const std::vector<std::unique_ptr<Step>>& steps, const LaneKernels& kernels, const Memory& memory,
    Progress* progress, int64_t begin_ns, int64_t* step_ends) {
  for (size_t i = 0; i < steps.size(); ++i) {
    const int64_t tasks = steps[i]->num_tasks();
    Progress& p = progress[i];
    for (int64_t task; (task = p.next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      steps[i]->run(kernels, memory, task);
      if (p.done.fetch_add(1, std::memory_order_acq_rel) + 1 == tasks && step_ends) {
        step_ends[i] = nanoseconds() - begin_ns;
      }
    }
    for (int spins = 0; p.done.load(std::memory_order_acquire) < tasks; ++spins) {
      if (spins >= SPINS_BEFORE_YIELD) {
        std::this_thread::yield();
      }
    }
  }
}

}  // namespace

Plan::Plan(
    const int64_t* words, int64_t num_words, int64_t arena_elements, int64_t num_inputs, int64_t num_outputs)
    : kernels_(lane_kernels()),
      arena_elements_(arena_elements),
      num_inputs_(num_inputs),
      num_outputs_(num_outputs) {
  require(num_words % STEP_WORDS == 0 && arena_elements >= 0, "its size");
  const Bounds bounds{arena_elements, kernels_.lanes};
  const int64_t threads = torch::stable::get_num_threads();
  for (const int64_t* step = words; step < words + num_words; step += STEP_WORDS) {
    switch (*step) {
      case CONV:
        steps_.push_back(std::make_unique<Conv>(read_words<ConvStep>(step), kernels_, bounds, threads));
        break;
      case HALO:
        steps_.push_back(std::make_unique<Halo>(read_words<HaloStep>(step), bounds, threads));
        break;
      case REMAP:
        steps_.push_back(
            std::make_unique<Remap>(read_words<RemapStep>(step), bounds, num_inputs, num_outputs, threads));
        break;
      case ELEMENTWISE:
        steps_.push_back(std::make_unique<Elementwise>(read_words<ElementwiseStep>(step), bounds, threads));
        break;
      case POOL:
        steps_.push_back(std::make_unique<Pool>(read_words<PoolStep>(step), bounds, threads));
        break;
      case MEAN:
        steps_.push_back(std::make_unique<Mean>(read_words<MeanStep>(step), bounds, threads));
        break;
      default:
        require(false, "unknown kind");
    }
    for (const int slot : {PLANAR_SLOT, SUMS_SLOT}) {
      scratch_elements_[slot] = std::max(scratch_elements_[slot], steps_.back()->scratch_elements(slot, kernels_.lanes));
    }
  }
}

Plan::~Plan() = default;

std::unique_ptr<Arena> Plan::take_arena() const {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!free_arenas_.empty()) {
      std::unique_ptr<Arena> arena = std::move(free_arenas_.back());
      free_arenas_.pop_back();
      return arena;
    }
  }
  return std::make_unique<Arena>(arena_elements_);
}

void Plan::run_image(const Memory& memory, int64_t* step_ends) const {
  const std::unique_ptr<Progress[]> progress(new Progress[steps_.size()]);
  const int64_t begin = nanoseconds();
  std::atomic<bool> has_memory{true};  // what a thread throws would lose its type on the way
  torch::stable::parallel_for(0, torch::stable::get_num_threads(), 1, [&](int64_t, int64_t) {
    const FlushDenormals flush;
    try {
      for (const int slot : {PLANAR_SLOT, SUMS_SLOT}) {
        scratch<float>(slot, scratch_elements_[slot]);
      }
    } catch (const std::bad_alloc&) {
      has_memory = false;
      return;
    }
    participate(steps_, kernels_, memory, progress.get(), begin, step_ends);
  });
  if (!has_memory) {
    throw std::bad_alloc();
  }
}

void Plan::run(
    const std::vector<Image>& inputs, const std::vector<Result>& outputs, int64_t batch, int64_t* step_ends,
    float* callers_arena) const {
  require(reinterpret_cast<uintptr_t>(callers_arena) % CACHE_LINE == 0, "an arena that is not aligned");
  std::unique_ptr<Arena> arena = callers_arena ? nullptr : take_arena();
  for (int64_t n = 0; n < batch; ++n) {
    Memory memory{callers_arena ? callers_arena : arena->data, {}, {}};
    for (const Image& input : inputs) {
      memory.inputs.push_back(input.data + n * input.batch_stride);
    }
    for (const Result& output : outputs) {
      memory.outputs.push_back(output.data + n * output.batch_stride);
    }
    run_image(memory, step_ends);
  }
  if (arena) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_arenas_.push_back(std::move(arena));
  }
}

double fma_peak_gflops() {
  constexpr int TRIES = 5;
  constexpr int64_t ITERATIONS = 2'000'000;
  const LaneKernels& kernels = lane_kernels();
  const int64_t threads = torch::stable::get_num_threads();
  double best = 0;
  for (int i = 0; i < TRIES; ++i) {
    std::atomic<int64_t> operations{0};
    const int64_t begin = nanoseconds();
    torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
      for (int64_t t = first; t < last; ++t) {
        operations += kernels.multiply_add(ITERATIONS);
      }
    });
    best = std::max(best, static_cast<double>(operations) / (nanoseconds() - begin));
  }
  return best;
}

}  // namespace prunekit
