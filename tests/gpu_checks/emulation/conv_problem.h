// Reads a convolution as tests/support/emulated_kernels.py writes it, and runs it.
#pragma once

#include <type_traits>

#include "problem_file.h"
#include "words.h"

// The arrays of a filter, which must be as long as its header says; `conv` points to them.
struct FilterArrays {
  std::vector<std::unique_ptr<int32_t[]>> words;
  std::vector<std::unique_ptr<uint16_t[]>> halves;

  void read(const prunekit::FilterTensor& tensor) {
    int64_t length = 0;
    if (tensor.words) {
      words.push_back(read_array<int32_t>(length));
      *tensor.words = words.back().get();
    } else {
      halves.push_back(read_array<uint16_t>(length));
      *tensor.halves = halves.back().get();
    }
    if (length != tensor.elements) {
      simt::stop("a tensor of the filter is not as long as its header says");
    }
  }
};

// Call run(conv, is_bfloat16, header, seed); tensors(conv, header) are the filter's.
template <typename Conv, typename Tensors, typename Run>
void run_conv_problem(const int64_t* words, unsigned seed, std::FILE* output, const Tensors& tensors, const Run& run) {
  using Element = std::remove_pointer_t<decltype(Conv::y)>;
  Conv conv{};
  const bool is_bfloat16 = sizeof(Element) == 2 && *words++;
  for (int* size :
       {&conv.n, &conv.h, &conv.w, &conv.p, &conv.q, &conv.stride_h, &conv.stride_w, &conv.padding_h, &conv.padding_w,
        &conv.dilation_h, &conv.dilation_w, &conv.activation}) {
    *size = static_cast<int>(*words++);
  }
  for (const prunekit::LaunchWord& word : launch_words(conv)) {
    *word.value = static_cast<int>(*words++);
  }
  for (int64_t* stride :
       {&conv.x_stride_n, &conv.x_stride_c, &conv.x_stride_h, &conv.x_stride_w, &conv.y_stride_n, &conv.y_stride_k,
        &conv.y_stride_p, &conv.y_stride_q}) {
    *stride = *words++;
  }
  int64_t length = 0;
  const auto slope = read_array<float>(length);
  conv.negative_slope = slope[0];
  const auto header = read_array<int64_t>(length);
  FilterArrays filter;
  for (const prunekit::FilterTensor& tensor : tensors(conv, header.get())) {
    filter.read(tensor);
  }
  int64_t x_size = 0, bias_size = 0, residual_size = 0, y_size = 0;
  const auto x = read_array<Element>(x_size), bias = read_array<Element>(bias_size);
  const auto residual = read_array<Element>(residual_size);
  const auto y = read_array<Element>(y_size);  // poisoned by the caller
  conv.x = x.get(), conv.y = y.get();
  conv.bias = bias_size ? bias.get() : nullptr;
  conv.residual = residual_size ? residual.get() : nullptr;
  run(conv, is_bfloat16, header.get(), seed);
  std::fwrite(y.get(), sizeof(Element), y_size, output);
}
