// record_conv2d on CUDA tensors, through torch's stable ABI: compiled without CUDA's headers, and against any torch.
#define Py_LIMITED_API 0x030a0000
#include <Python.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <limits>
#include <optional>
#include <vector>

#include "../check.h"
#include "../conv_shape.h"
#include "record_conv2d.h"

namespace prunekit {
namespace {

// A CPU build of torch has no such function, so it is looked for when a kernel is to run.
void* current_stream(int32_t device) {
  using GetStream = int32_t (*)(int32_t device, void** stream);
  static const auto get_stream = reinterpret_cast<GetStream>(dlsym(RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"));
  STD_TORCH_CHECK(get_stream, "prunekit's CUDA kernels need a CUDA build of torch; this one has no CUDA streams");
  void* stream = nullptr;
  STD_TORCH_CHECK(get_stream(device, &stream) == 0, "torch gives no CUDA stream for device ", device);
  return stream;
}

void check_on_device(const Tensor& x, const Tensor& t, const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(
      t.is_cuda() && t.get_device_index() == x.get_device_index() && t.scalar_type() == dtype,
      "record_conv2d expects ", name, " on x's device, records and starts int32, all else float32");
}

bool is_channels_last(const Tensor& x) {
  const int64_t c = x.size(1), h = x.size(2), w = x.size(3);
  const bool has_strides = x.stride(1) == 1 && (w == 1 || x.stride(3) == c) && (h == 1 || x.stride(2) == w * c) &&
      (x.size(0) == 1 || x.stride(0) == h * w * c);
  return has_strides && !x.is_contiguous();
}

bool has_strides_of(const Tensor& a, const Tensor& b) {
  for (int64_t dim = 0; dim < 4; ++dim) {
    if (a.stride(dim) != b.stride(dim)) {
      return false;
    }
  }
  return true;
}

Tensor empty_output(const Tensor& x, const ConvShape& shape) {
  if (!is_channels_last(x)) {
    return torch::stable::new_empty(x, {shape.n, shape.k, shape.p, shape.q});
  }
  const Tensor y = torch::stable::new_empty(x, {shape.n, shape.p, shape.q, shape.k});
  return torch::stable::transpose(torch::stable::transpose(y, 1, 3), 2, 3);
}

ConvShape read_shape(
    const Tensor& x, const std::vector<int64_t>& header, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
  STD_TORCH_CHECK(header.size() == RECORD_HEADER_WORDS, "the record filter's header has a wrong length");
  for (const int word : {RECORD_OUT_CHANNELS, RECORD_GROUP_CHANNELS, RECORD_KERNEL_H, RECORD_KERNEL_W, RECORD_GROUPS,
                         RECORD_CHUNK_CHANNELS, RECORD_SLICES, RECORD_WINDOW_TAPS}) {
    STD_TORCH_CHECK(header[word] > 0 && header[word] < (1 << 29), "the record filter's header is damaged");
  }
  const int64_t groups = header[RECORD_GROUPS];
  STD_TORCH_CHECK(
      x.dim() == 4 && x.size(1) == header[RECORD_GROUP_CHANNELS] * groups,
      "the record filter expects x [N, ", header[RECORD_GROUP_CHANNELS] * groups, ", H, W], got ", shape_of(x));
  for (const auto* pair : {&stride, &padding, &dilation}) {
    const int64_t least = pair == &padding ? 0 : 1;
    STD_TORCH_CHECK(
        pair->size() == 2 && (*pair)[0] >= least && (*pair)[1] >= least && (*pair)[0] < 4096 && (*pair)[1] < 4096,
        "stride and dilation must be two numbers from 1 to 4095, padding two from 0 to 4095");
  }
  ConvShape shape{x.size(0), x.size(1), x.size(2), x.size(3), header[RECORD_OUT_CHANNELS], header[RECORD_KERNEL_H],
                  header[RECORD_KERNEL_W], groups, stride[0], stride[1], padding[0], padding[1], dilation[0],
                  dilation[1], 0, 0};
  shape.set_output_size();
  constexpr int64_t MOST = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(
      shape.n <= MOST && shape.h <= MOST && shape.w <= MOST, "record_conv2d runs sizes of up to 2^31 - 1 each");
  return shape;
}

void check_filter(const Tensor& x, const std::vector<int64_t>& header, const Tensor& starts, const Tensor& records,
    const Tensor& rows) {
  check_on_device(x, starts, "starts", ScalarType::Int);
  check_on_device(x, records, "records", ScalarType::Int);
  check_on_device(x, rows, "rows", ScalarType::Int);
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t segments = header[RECORD_GROUPS] *
      ceil_div(header[RECORD_OUT_CHANNELS] / header[RECORD_GROUPS], RECORD_ROWS) *
      ceil_div(header[RECORD_GROUP_CHANNELS], header[RECORD_CHUNK_CHANNELS]) * header[RECORD_SLICES];
  STD_TORCH_CHECK(
      starts.is_contiguous() && records.is_contiguous() && rows.is_contiguous() &&
          rows.numel() == header[RECORD_OUT_CHANNELS] && starts.numel() == segments + 1 &&
          records.numel() == 2 * header[RECORD_COUNT],
      "the record filter is damaged: its header does not fit its ", starts.numel(), " starts and ", records.numel() / 2,
      " records");
}

Tensor record_conv2d(
    const Tensor& x, const std::vector<int64_t>& header, const Tensor& starts, const Tensor& records,
    const Tensor& rows, const std::optional<Tensor>& bias, const std::optional<Tensor>& residual, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, const std::string& activation,
    double negative_slope, const std::vector<int64_t>& launch) {
  check_on_device(x, x, "x", ScalarType::Float);
  const ConvShape shape = read_shape(x, header, stride, padding, dilation);
  check_filter(x, header, starts, records, rows);
  STD_TORCH_CHECK(
      activation == "none" || activation == "leaky_relu", "activation must be none or leaky_relu, got ", activation);
  STD_TORCH_CHECK(launch.size() == 5, "launch must be five numbers");
  for (const int64_t number : launch) {
    STD_TORCH_CHECK(number >= 0 && number <= 4096, "launch must be five numbers of up to 4096");
  }
  Tensor y = empty_output(x, shape);
  if (bias) {
    check_on_device(x, *bias, "bias", ScalarType::Float);
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == shape.k, "record_conv2d expects a bias [", shape.k, "]");
  }
  const Tensor dense_bias = bias ? torch::stable::contiguous(*bias) : x;
  if (residual) {
    check_on_device(x, *residual, "residual", ScalarType::Float);
    STD_TORCH_CHECK(
        shape_of(*residual) == shape_of(y), "record_conv2d expects a residual of the output's shape ", shape_of(y));
  }
  // The kernel reads the residual with y's strides; one that has others is copied.
  Tensor dense_residual = residual ? *residual : x;
  if (residual && !has_strides_of(*residual, y)) {
    dense_residual = empty_output(x, shape);
    torch::stable::copy_(dense_residual, *residual);
  }
  if (y.numel() == 0) {
    return y;
  }
  RecordConv conv{};
  conv.x = x.const_data_ptr<float>(), conv.y = y.mutable_data_ptr<float>();
  conv.starts = starts.const_data_ptr<int32_t>(), conv.records = records.const_data_ptr<int32_t>();
  conv.rows = rows.const_data_ptr<int32_t>();
  conv.bias = bias ? dense_bias.const_data_ptr<float>() : nullptr;
  conv.residual = residual ? dense_residual.const_data_ptr<float>() : nullptr;
  conv.x_stride_n = x.stride(0), conv.x_stride_c = x.stride(1), conv.x_stride_h = x.stride(2);
  conv.x_stride_w = x.stride(3), conv.y_stride_n = y.stride(0), conv.y_stride_k = y.stride(1);
  conv.y_stride_p = y.stride(2), conv.y_stride_q = y.stride(3);
  conv.n = shape.n, conv.h = shape.h, conv.w = shape.w, conv.p = shape.p, conv.q = shape.q;
  conv.stride_h = stride[0], conv.stride_w = stride[1], conv.padding_h = padding[0], conv.padding_w = padding[1];
  conv.dilation_h = dilation[0], conv.dilation_w = dilation[1];
  conv.has_activation = activation != "none", conv.negative_slope = static_cast<float>(negative_slope);
  conv.tile_h = launch[0], conv.lanes_h = launch[1], conv.lanes_w = launch[2];
  conv.block_row_groups = launch[3], conv.buffers = launch[4];
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const std::string problem = launch_record_conv2d(conv, header.data(), current_stream(x.get_device_index()));
  STD_TORCH_CHECK(problem.empty(), "record_conv2d did not run: ", problem);
  return y;
}

STABLE_TORCH_LIBRARY_IMPL(prunekit, CUDA, m) { m.impl("record_conv2d", TORCH_BOX(&record_conv2d)); }

PyObject* architectures(PyObject*, PyObject*) { return PyUnicode_FromString(PRUNEKIT_CUDA_ARCHITECTURES); }

PyObject* toolkit_version(PyObject*, PyObject*) { return PyLong_FromLong(cuda_toolkit_version()); }

PyMethodDef METHODS[] = {
    {"architectures", architectures, METH_NOARGS, "The architectures that the kernels were compiled for."},
    {"toolkit_version", toolkit_version, METH_NOARGS, "1000 · major + 10 · minor of the toolkit that compiled them."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_cuda", nullptr, 0, METHODS, nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace prunekit

PyMODINIT_FUNC PyInit__cuda() { return PyModule_Create(&prunekit::MODULE); }
