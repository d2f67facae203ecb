// Executes compiled kernels on problems from a file: run INPUT OUTPUT SEED PTX KERNEL [account]. KERNEL is record,
// condensed, bitmap or semi_structured. tests/support/executed_ptx.py writes and reads.
#include "bitmap/launch.h"
#include "record/launch.h"
#include "semi_structured/launch.h"

#include "block.h"
#include "conv_problem.h"
#include "instructions.h"

namespace {

using namespace prunekit;

ptx::Module kernels;
bool has_account = false;

template <typename... Numbers>
std::string instance(std::string name, Numbers... numbers) {
  ((name += (name.back() == '<' ? "" : ",") + std::to_string(numbers)), ...);
  return name + ">";
}

template <typename Conv>
void execute(const std::string& name, const Conv& conv, const GridLaunch& launch, const void* written, unsigned seed) {
  if (!launch.refusal.empty()) {
    simt::stop(launch.refusal.c_str());
  }
  ptx::GlobalMemory global;
  for (const ProblemArray& array : problem_arrays) {
    global.add(array.begin, array.bytes, array.begin == written);
  }
  const ptx::Kernel& kernel = kernels.at(name);
  ptx::Account account(kernel);
  const ptx::Grid grid{launch.grid_x, launch.grid_y, launch.threads, launch.shared_bytes};
  ptx::launch(kernel, &conv, sizeof(conv), global, grid, seed, has_account ? &account : nullptr);
  if (has_account) {
    account.print(stdout);
  }
}

void run_record(RecordConv conv, bool, const int64_t* header, unsigned seed) {
  const GridLaunch launch = plan_record_launch(conv, header);
  const RecordWindow window =
      RecordWindow::of(conv, header[RECORD_KERNEL_H], header[RECORD_KERNEL_W], header[RECORD_WINDOW_TAPS]);
  const int side = window.taps == 9 ? 3 : 1, channels = window.taps == 9 ? 1 : window.taps;
  const int tile_h = window.stride == 1 ? conv.tile_h : 4;
  execute(
      instance("record_conv2d<", RECORD_ROWS, tile_h, side, side, window.stride, channels), conv, launch, conv.y, seed);
}

void run_condensed(CondensedConv conv, bool is_bfloat16, const int64_t* header, unsigned seed) {
  const GridLaunch launch = plan_condensed_launch(conv, header);
  const InputWindow window = InputWindow::of(conv);
  execute(
      instance("condensed_conv2d<", int{is_bfloat16}, window.shifts, window.stride, conv.warp_units), conv, launch,
      conv.y, seed);
}

void run_semi_structured(CondensedConv conv, bool is_bfloat16, const int64_t* header, unsigned seed) {
  const GridLaunch launch = plan_semi_structured_launch(conv, header);
  const InputWindow window = InputWindow::of(conv);
  const int fragments = static_cast<int>(header[SEMI_STRUCTURED_FRAGMENTS]);
  execute(
      instance("semi_structured_conv2d<", int{is_bfloat16}, window.shifts, window.stride, fragments), conv, launch,
      conv.y, seed);
}

void run_bitmap(BitmapConv conv, bool is_bfloat16, const int64_t* header, unsigned seed) {
  const GridLaunch launch = plan_bitmap_launch(conv, header);
  std::vector<float> workspace(workspace_size(conv), NAN);
  conv.workspace = workspace.data();
  problem_arrays.push_back({workspace.data(), static_cast<int64_t>(workspace.size() * sizeof(float))});
  const InputWindow window = InputWindow::of(conv);
  const bool is_cut = conv.cuts > 1;
  execute(
      instance("bitmap_conv2d<", int{is_bfloat16}, window.shifts, window.stride, conv.warp_units), conv, launch,
      is_cut ? static_cast<const void*>(workspace.data()) : conv.y, seed);
  if (is_cut) {
    execute(instance("add_cuts<", int{is_bfloat16}), conv, plan_cut_launch(conv), conv.y, seed);
  }
}

void run_problem(const std::string& kernel, const int64_t* words, unsigned seed, std::FILE* output) {
  if (kernel == "record") {
    run_conv_problem<RecordConv>(words, seed, output, record_tensors, run_record);
  } else if (kernel == "condensed") {
    run_conv_problem<CondensedConv>(words, seed, output, condensed_tensors, run_condensed);
  } else if (kernel == "bitmap") {
    run_conv_problem<BitmapConv>(words, seed, output, bitmap_tensors, run_bitmap);
  } else {
    run_conv_problem<CondensedConv>(words, seed, output, semi_structured_tensors, run_semi_structured);
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 6) {
    simt::stop("usage: run INPUT OUTPUT SEED PTX KERNEL [account]");
  }
  has_account = count > 6;
  try {
    kernels = ptx::Parser::read(arguments[4]);
    const std::string kernel = arguments[5];
    return run_problems(count, arguments, [&](const int64_t* words, unsigned seed, std::FILE* output) {
      run_problem(kernel, words, seed, output);
    });
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
