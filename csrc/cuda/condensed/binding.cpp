// condensed_conv2d on CUDA tensors, through torch's stable ABI: compiled without CUDA's headers, and against any torch.
#include "conv_op.h"
#include "condensed/launch.h"

namespace prunekit {
namespace {

struct CondensedOp {
  using Conv = CondensedConv;
  static constexpr const char* NAME = "condensed_conv2d";
  static constexpr const char* DTYPES = "starts, columns and rows int32, all else of x's dtype, float16 or bfloat16";
  static constexpr const auto& HEADER = FRAGMENT_HEADER;

  static bool is_sound(const int64_t* header) { return true; }
  static auto tensors(Conv& conv, const int64_t* header) { return condensed_tensors(conv, header); }
  static std::string launch(Conv& conv, const Tensor& x, const int64_t* header, bool is_bfloat16, void* stream) {
    return launch_condensed_conv2d(conv, is_bfloat16, header, stream);
  }
};

PRUNEKIT_CONV_OP(CondensedOp)

}  // namespace
}  // namespace prunekit
