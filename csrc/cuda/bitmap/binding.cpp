// bitmap_conv2d on CUDA tensors, through torch's stable ABI: compiled without CUDA's headers, and against any torch.
#include "conv_op.h"
#include "bitmap/launch.h"

namespace prunekit {
namespace {

struct BitmapOp {
  using Conv = BitmapConv;
  static constexpr const char* NAME = "bitmap_conv2d";
  static constexpr const char* DTYPES = "starts, records and rows int32, all else of x's dtype, float16 or bfloat16";
  static constexpr const auto& HEADER = BITMAP_HEADER;

  static bool is_sound(const int64_t* header) { return true; }
  static auto tensors(Conv& conv, const int64_t* header) { return bitmap_tensors(conv, header); }
  static GridLaunch plan(Conv& conv, Tensor& workspace, const int64_t* header) {
    const GridLaunch plan = plan_bitmap_launch(conv, header);
    if (plan.refusal.empty() && workspace_size(conv) > 0) {
      workspace = torch::stable::new_empty(workspace, {workspace_size(conv)}, ScalarType::Float);
      conv.workspace = workspace.mutable_data_ptr<float>();
    }
    return plan;
  }
  static constexpr auto& launch = launch_bitmap_conv2d;
};

PRUNEKIT_CONV_OP(BitmapOp)

}  // namespace
}  // namespace prunekit
