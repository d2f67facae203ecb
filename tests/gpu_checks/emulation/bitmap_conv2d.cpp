// Runs the bitmap kernels on problems from a file: emulate INPUT OUTPUT SEED. tests/support/emulated_kernels.py writes
// and reads.
#include "bitmap/conv2d.cuh"

#include "problem_file.h"

namespace {

// Launches the kernel, and behind it the one that adds the cuts where there are several.
void run(prunekit::BitmapConv conv, bool is_bfloat16, const int64_t* header, unsigned seed) {
  const prunekit::BitmapLaunch launch = prunekit::plan_bitmap_launch(conv, header);
  if (!launch.refusal.empty()) {
    simt::stop(launch.refusal.c_str());
  }
  // Of exactly this size, and of nan: what no block has written must not be read.
  const int64_t size = prunekit::workspace_size(conv);
  std::unique_ptr<float, decltype(&std::free)> workspace(
      static_cast<float*>(std::aligned_alloc(16, std::max<int64_t>(16, size * sizeof(float)))), &std::free);
  std::fill_n(workspace.get(), size, std::nanf(""));
  conv.workspace = workspace.get();
  prunekit::visit_bitmap_kernels(
      is_bfloat16, prunekit::InputWindow::of(conv), conv.warp_units, [&](auto kernel, auto add_cuts) {
        simt::launch(
            dim3(launch.grid_x, launch.grid_y), dim3(launch.threads), launch.shared_bytes, seed, [&] { kernel(conv); });
        if (conv.cuts > 1) {
          const prunekit::BitmapLaunch adding = prunekit::plan_cut_launch(conv);
          simt::launch(dim3(adding.grid_x, adding.grid_y), dim3(adding.threads), adding.shared_bytes, seed, [&] {
            add_cuts(conv);
          });
        }
      });
}

void run_problem(const int64_t* words, unsigned seed, std::FILE* output) {
  prunekit::BitmapConv conv{};
  int is_bfloat16 = 0;
  int64_t at = 0, length = 0;
  for (int* size :
       {&is_bfloat16,     &conv.n,          &conv.h,         &conv.w,         &conv.p,           &conv.q,
        &conv.stride_h,   &conv.stride_w,   &conv.padding_h, &conv.padding_w, &conv.dilation_h,  &conv.dilation_w,
        &conv.activation, &conv.warp_units, &conv.tile_h,    &conv.units_w,   &conv.pixel_warps, &conv.block_row_groups,
        &conv.slices,     &conv.buffers,    &conv.cuts}) {
    *size = static_cast<int>(words[at++]);
  }
  for (int64_t* stride :
       {&conv.x_stride_n, &conv.x_stride_c, &conv.x_stride_h, &conv.x_stride_w, &conv.y_stride_n, &conv.y_stride_k,
        &conv.y_stride_p, &conv.y_stride_q}) {
    *stride = words[at++];
  }
  const auto slope = read_array<float>(length);
  conv.negative_slope = slope[0];
  const auto header = read_array<int64_t>(length);
  const auto starts = read_array<int32_t>(length), records = read_array<int32_t>(length);
  const auto values = read_array<uint16_t>(length);
  const auto rows = read_array<int32_t>(length);
  int64_t x_size = 0, bias_size = 0, residual_size = 0, y_size = 0;
  const auto x = read_array<uint16_t>(x_size), bias = read_array<uint16_t>(bias_size);
  const auto residual = read_array<uint16_t>(residual_size);
  const auto y = read_array<uint16_t>(y_size);  // poisoned by the caller
  conv.starts = starts.get(), conv.records = records.get(), conv.values = values.get(), conv.rows = rows.get();
  conv.x = x.get(), conv.y = y.get();
  conv.bias = bias_size ? bias.get() : nullptr;
  conv.residual = residual_size ? residual.get() : nullptr;
  run(conv, is_bfloat16, header.get(), seed);
  std::fwrite(y.get(), sizeof(uint16_t), y_size, output);
}

}  // namespace

int main(int count, char** arguments) { return run_problems(count, arguments, run_problem); }
