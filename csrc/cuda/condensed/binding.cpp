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
  static GridLaunch plan(Conv& conv, Tensor& workspace, const int64_t* header) {
    return plan_condensed_launch(conv, header);
  }
  static constexpr auto& launch = launch_condensed_conv2d;
};

PRUNEKIT_CONV_OP(CondensedOp)

}  // namespace
}  // namespace prunekit
