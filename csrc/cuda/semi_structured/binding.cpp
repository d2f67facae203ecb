// semi_structured_conv2d on CUDA tensors, through torch's stable ABI: compiled without CUDA's headers, and against any torch.
#include "conv_op.h"
#include "semi_structured/launch.h"

namespace prunekit {
namespace {

struct SemiStructuredOp {
  using Conv = CondensedConv;
  static constexpr const char* NAME = "semi_structured_conv2d";
  static constexpr const char* DTYPES =
      "starts, columns, metadata and rows int32, all else of x's dtype, float16 or bfloat16";
  static constexpr const auto& HEADER = SEMI_STRUCTURED_HEADER;

  static bool is_sound(const int64_t* header) {
    const int64_t fragments = header[SEMI_STRUCTURED_FRAGMENTS];
    return fragments == 1 || fragments == 2 || fragments == 4;
  }
  static auto tensors(Conv& conv, const int64_t* header) { return semi_structured_tensors(conv, header); }
  static GridLaunch plan(Conv& conv, Tensor& workspace, const int64_t* header) {
    return plan_semi_structured_launch(conv, header);
  }
  static constexpr auto& launch = launch_semi_structured_conv2d;
};

PRUNEKIT_CONV_OP(SemiStructuredOp)

}  // namespace
}  // namespace prunekit
