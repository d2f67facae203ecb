// Runs the float32 kernel on problems from a file: emulate INPUT OUTPUT SEED. tests/support/emulated_kernels.py writes
// and reads.
#include "record/conv2d.cuh"

#include "problem_file.h"

namespace {

void run(prunekit::RecordConv conv, const int64_t* header, unsigned seed) {
  const prunekit::RecordLaunch launch = prunekit::plan_record_launch(conv, header);
  if (!launch.refusal.empty()) {
    simt::stop(launch.refusal.c_str());
  }
  const auto window = prunekit::RecordWindow::of(
      conv, header[prunekit::RECORD_KERNEL_H], header[prunekit::RECORD_KERNEL_W], header[prunekit::RECORD_WINDOW_TAPS]);
  prunekit::visit_record_kernel(window, conv.tile_h, [&](auto kernel) {
    simt::launch(
        dim3(launch.grid_x, launch.grid_y), dim3(launch.threads), launch.shared_bytes, seed, [&] { kernel(conv); });
  });
}

void run_problem(const int64_t* words, unsigned seed, std::FILE* output) {
  prunekit::RecordConv conv{};
  int64_t at = 0, length = 0;
  for (int* size :
       {&conv.n, &conv.h, &conv.w, &conv.p, &conv.q, &conv.stride_h, &conv.stride_w, &conv.padding_h, &conv.padding_w,
        &conv.dilation_h, &conv.dilation_w, &conv.activation, &conv.tile_h, &conv.lanes, &conv.lanes_w,
        &conv.block_row_groups, &conv.buffers}) {
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
  const auto rows = read_array<int32_t>(length);
  int64_t x_size = 0, bias_size = 0, residual_size = 0, y_size = 0;
  const auto x = read_array<float>(x_size), bias = read_array<float>(bias_size);
  const auto residual = read_array<float>(residual_size);
  const auto y = read_array<float>(y_size);  // poisoned by the caller
  conv.starts = starts.get(), conv.records = records.get(), conv.rows = rows.get(), conv.x = x.get(), conv.y = y.get();
  conv.bias = bias_size ? bias.get() : nullptr;
  conv.residual = residual_size ? residual.get() : nullptr;
  run(conv, header.get(), seed);
  std::fwrite(y.get(), sizeof(float), y_size, output);
}

}  // namespace

int main(int count, char** arguments) { return run_problems(count, arguments, run_problem); }
