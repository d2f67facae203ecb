// The ops on CUDA tensors: their arguments, declared once for every kernel, checks, and the call of a kernel's launcher.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <array>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../check.h"
#include "../conv_shape.h"
#include "epilogue.h"
#include "words.h"

namespace prunekit {

// A CPU build of torch has no such function, so it is looked for when a kernel is to run.
inline void* current_stream(int32_t device) {
  using GetStream = int32_t (*)(int32_t device, void** stream);
  static const auto get_stream = reinterpret_cast<GetStream>(dlsym(RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"));
  STD_TORCH_CHECK(get_stream, "prunekit's CUDA kernels need a CUDA build of torch; this one has no CUDA streams");
  void* stream = nullptr;
  STD_TORCH_CHECK(get_stream(device, &stream) == 0, "torch gives no CUDA stream for device ", device);
  return stream;
}

inline Tensor empty_output(const Tensor& x, const ConvShape& shape) {
  if (!is_channels_last(x)) {
    return torch::stable::new_empty(x, {shape.n, shape.k, shape.p, shape.q});
  }
  const Tensor y = torch::stable::new_empty(x, {shape.n, shape.p, shape.q, shape.k});
  return torch::stable::transpose(torch::stable::transpose(y, 1, 3), 2, 3);
}

// One op's name and the dtypes of its tensors, for the checks' sentences.
struct ConvOp {
  const char* name;
  const char* dtypes;

  void check_on_device(const Tensor& x, const Tensor& t, const char* which, ScalarType dtype) const {
    STD_TORCH_CHECK(
        t.is_cuda() && t.get_device_index() == x.get_device_index() && t.scalar_type() == dtype, name, " expects ",
        which, " on x's device, ", dtypes);
  }

  // `k`, `group_channels`, `r`, `s` and `groups` are the packed filter's.
  ConvShape read_shape(
      const Tensor& x, int64_t k, int64_t group_channels, int64_t r, int64_t s, int64_t groups,
      const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
      const std::vector<int64_t>& dilation) const {
    STD_TORCH_CHECK(
        x.dim() == 4 && x.size(1) == group_channels * groups, name, " expects x [N, ", group_channels * groups,
        ", H, W] for its packed filter, got ", shape_of(x));
    for (const auto* pair : {&stride, &padding, &dilation}) {
      const int64_t least = pair == &padding ? 0 : 1;
      STD_TORCH_CHECK(
          pair->size() == 2 && (*pair)[0] >= least && (*pair)[1] >= least && (*pair)[0] < 4096 && (*pair)[1] < 4096,
          "stride and dilation must be two numbers from 1 to 4095, padding two from 0 to 4095");
    }
    ConvShape shape{x.size(0), x.size(1), x.size(2),  x.size(3),  k,           r,           s, groups,
                    stride[0], stride[1], padding[0], padding[1], dilation[0], dilation[1], 0, 0};
    shape.set_output_size();
    constexpr int64_t MOST = std::numeric_limits<int32_t>::max();
    STD_TORCH_CHECK(shape.n <= MOST && shape.h <= MOST && shape.w <= MOST, name, " runs sizes of up to 2^31 - 1 each");
    return shape;
  }
};

inline bool has_strides_of(const Tensor& a, const Tensor& b) {
  for (int64_t dim = 0; dim < 4; ++dim) {
    if (a.stride(dim) != b.stride(dim)) {
      return false;
    }
  }
  return true;
}

inline void check_choices(const std::string& activation, const std::vector<int64_t>& launch, size_t length) {
  STD_TORCH_CHECK(
      activation == "none" || activation == "leaky_relu" || activation == "leaky_relu_last",
      "activation must be none, leaky_relu or leaky_relu_last, got ", activation);
  STD_TORCH_CHECK(launch.size() == length, "launch must be ", length, " numbers");
  for (const int64_t number : launch) {
    STD_TORCH_CHECK(number >= 0 && number <= 4096, "launch must be ", length, " numbers of up to 4096");
  }
}

// The output, and what is added to it, as the kernels read it.
struct ConvOutput {
  Tensor y, bias, residual;  // without a bias or residual: any tensor
  bool has_bias, has_residual;

  static ConvOutput of(
      const ConvOp& op, const Tensor& x, const ConvShape& shape, const std::optional<Tensor>& bias,
      const std::optional<Tensor>& residual) {
    const Tensor y = empty_output(x, shape);
    if (bias) {
      op.check_on_device(x, *bias, "bias", x.scalar_type());
      STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == shape.k, op.name, " expects a bias [", shape.k, "]");
    }
    Tensor dense_residual = x;
    if (residual) {
      op.check_on_device(x, *residual, "residual", x.scalar_type());
      STD_TORCH_CHECK(
          shape_of(*residual) == shape_of(y), op.name, " expects a residual of the output's shape ", shape_of(y));
      // The kernel reads the residual with y's strides; one that has others is copied.
      dense_residual = *residual;
      if (!has_strides_of(*residual, y)) {
        dense_residual = empty_output(x, shape);
        torch::stable::copy_(dense_residual, *residual);
      }
    }
    return {y, bias ? torch::stable::contiguous(*bias) : x, dense_residual, bias.has_value(), residual.has_value()};
  }
};

// Fill what a kernel's arguments of any filter have in common.
template <typename Conv, typename Element>
void fill_conv(
    Conv& conv, const Element* x_data, Element* y_data, const Tensor& x, const Tensor& y, const ConvShape& shape,
    const std::string& activation, double negative_slope) {
  conv.x = x_data, conv.y = y_data;
  conv.x_stride_n = x.stride(0), conv.x_stride_c = x.stride(1), conv.x_stride_h = x.stride(2);
  conv.x_stride_w = x.stride(3), conv.y_stride_n = y.stride(0), conv.y_stride_k = y.stride(1);
  conv.y_stride_p = y.stride(2), conv.y_stride_q = y.stride(3);
  conv.n = shape.n, conv.h = shape.h, conv.w = shape.w, conv.p = shape.p, conv.q = shape.q;
  conv.stride_h = shape.stride_h, conv.stride_w = shape.stride_w;
  conv.padding_h = shape.padding_h, conv.padding_w = shape.padding_w;
  conv.dilation_h = shape.dilation_h, conv.dilation_w = shape.dilation_w;
  conv.activation = activation == "none" ? NO_ACTIVATION
      : activation == "leaky_relu"       ? BEFORE_RESIDUAL
                                         : AFTER_RESIDUAL;
  conv.negative_slope = static_cast<float>(negative_slope);
}

// What an op is told. `filter` has a tensor for each of the kernel's FilterTensors.
struct ConvCall {
  const Tensor& x;
  const std::vector<int64_t>& header;
  std::vector<const Tensor*> filter;
  const std::optional<Tensor>&bias, &residual;
  const std::vector<int64_t>&stride, &padding, &dilation;
  const std::string& activation;
  double negative_slope;
  const std::vector<int64_t>& launch;
};

template <typename T>
T* data_of(const Tensor& t) {
  return static_cast<T*>(const_cast<void*>(t.const_data_ptr()));
}

// The header's words, sound for a kernel that has them in this order.
template <typename Op>
void check_header(const ConvOp& op, const std::vector<int64_t>& header) {
  STD_TORCH_CHECK(
      header.size() == std::size(Op::HEADER), op.name, " expects a filter's header of ", std::size(Op::HEADER),
      " numbers");
  constexpr const char* SIZES[] = {PRUNEKIT_FILTER_WORDS(PRUNEKIT_WORD_NAME)};
  for (size_t word = 0; word < header.size(); ++word) {
    const int64_t least = word < std::size(SIZES) ? 1 : 0;
    STD_TORCH_CHECK(header[word] >= least && header[word] < (1 << 29), op.name, "'s filter's header is damaged");
  }
  STD_TORCH_CHECK(Op::is_sound(header.data()), op.name, "'s filter's header is damaged");
}

// A kernel is an Op: its Conv, NAME, DTYPES and HEADER, is_sound, tensors, plan and launch.
template <typename Op>
Tensor run_conv(const ConvCall& call) {
  using Element = std::remove_pointer_t<decltype(Op::Conv::y)>;
  const ConvOp op{Op::NAME, Op::DTYPES};
  const Tensor& x = call.x;
  const bool is_half = sizeof(Element) == 2, is_bfloat16 = is_half && x.scalar_type() == ScalarType::BFloat16;
  const ScalarType dtype = is_bfloat16 ? ScalarType::BFloat16 : is_half ? ScalarType::Half : ScalarType::Float;
  op.check_on_device(x, x, "x", dtype);
  check_header<Op>(op, call.header);
  const auto& header = call.header;
  const ConvShape shape =
      op.read_shape(x, header[0], header[1], header[2], header[3], header[4], call.stride, call.padding, call.dilation);
  typename Op::Conv conv{};
  const auto tensors = Op::tensors(conv, header.data());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& part = *call.filter[i];
    op.check_on_device(x, part, tensors[i].name, tensors[i].words ? ScalarType::Int : dtype);
    STD_TORCH_CHECK(
        part.is_contiguous() && part.numel() == tensors[i].elements, op.name,
        "'s filter is damaged: its header asks for ", tensors[i].elements, " ", tensors[i].name, ", got ",
        part.numel());
    if (tensors[i].words) {
      *tensors[i].words = data_of<int32_t>(part);
    } else {
      *tensors[i].halves = data_of<uint16_t>(part);
    }
  }
  const auto words = launch_words(conv);
  check_choices(call.activation, call.launch, words.size());
  for (size_t i = 0; i < words.size(); ++i) {
    *words[i].value = static_cast<int>(call.launch[i]);
  }
  const ConvOutput output = ConvOutput::of(op, x, shape, call.bias, call.residual);
  if (output.y.numel() == 0) {
    return output.y;
  }
  fill_conv(
      conv, data_of<const Element>(x), data_of<Element>(output.y), x, output.y, shape, call.activation,
      call.negative_slope);
  conv.bias = output.has_bias ? data_of<const Element>(output.bias) : nullptr;
  conv.residual = output.has_residual ? data_of<const Element>(output.residual) : nullptr;
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor workspace = x;  // or memory that a plan asks for
  const GridLaunch launch = Op::plan(conv, workspace, header.data());
  void* stream = current_stream(x.get_device_index());
  const std::string problem =
      launch.refusal.empty() ? Op::launch(conv, launch, header.data(), is_bfloat16, stream) : launch.refusal;
  STD_TORCH_CHECK(problem.empty(), op.name, " did not run: ", problem);
  return output.y;
}

// The op as torch's dispatcher calls it, with as many tensors as the filter has.
template <typename Op, typename Tensors>
struct BoxedConv;
template <typename Op, size_t... I>
struct BoxedConv<Op, std::index_sequence<I...>> {
  template <size_t>
  using Part = const Tensor&;

  static Tensor run(
      const Tensor& x, const std::vector<int64_t>& header, Part<I>... filter, const std::optional<Tensor>& bias,
      const std::optional<Tensor>& residual, const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
      const std::vector<int64_t>& dilation, const std::string& activation, double negative_slope,
      const std::vector<int64_t>& launch) {
    return run_conv<Op>(
        {x, header, {&filter...}, bias, residual, stride, padding, dilation, activation, negative_slope, launch});
  }
};

// The names of all ops' words, as `signature` of prunekit/ops/cuda/registry.py writes them.
inline std::vector<std::string>& signatures() {
  static std::vector<std::string> lines;
  return lines;
}

template <typename Op>
constexpr size_t NUM_TENSORS = std::tuple_size_v<decltype(Op::tensors(std::declval<typename Op::Conv&>(), nullptr))>;

template <typename Op>
bool sign() {
  typename Op::Conv conv{};
  std::vector<int64_t> ones(std::size(Op::HEADER), 1);
  std::string line = std::string(Op::NAME) + " header";
  for (const char* word : Op::HEADER) {
    line += std::string(" ") + word;
  }
  line += " tensors";
  for (const FilterTensor& tensor : Op::tensors(conv, ones.data())) {
    line += std::string(" ") + tensor.name;
  }
  line += " launch";
  for (const LaunchWord& word : launch_words(conv)) {
    line += std::string(" ") + word.name;
  }
  signatures().push_back(line);
  return true;
}

#define PRUNEKIT_CONV_OP(Op)                                                \
  STABLE_TORCH_LIBRARY_IMPL(prunekit, CUDA, m) {                            \
    using Boxed = BoxedConv<Op, std::make_index_sequence<NUM_TENSORS<Op>>>; \
    m.impl(Op::NAME, TORCH_BOX(&Boxed::run));                               \
  }                                                                         \
  [[maybe_unused]] const bool is_signed = sign<Op>();

}  // namespace prunekit
