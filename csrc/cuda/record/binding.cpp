// record_conv2d on CUDA tensors, through torch's stable ABI: compiled without CUDA's headers, and against any torch.
#include "conv_op.h"
#include "record/launch.h"

namespace prunekit {
namespace {

struct RecordOp {
  using Conv = RecordConv;
  static constexpr const char* NAME = "record_conv2d";
  static constexpr const char* DTYPES = "records and starts int32, all else float32";
  static constexpr const auto& HEADER = RECORD_HEADER;

  static bool is_sound(const int64_t* header) { return header[RECORD_SLICES] > 0 && header[RECORD_WINDOW_TAPS] > 0; }
  static auto tensors(Conv& conv, const int64_t* header) { return record_tensors(conv, header); }
  static GridLaunch plan(Conv& conv, Tensor& workspace, const int64_t* header) {
    return plan_record_launch(conv, header);
  }
  static constexpr auto& launch = launch_record_conv2d;
};

PRUNEKIT_CONV_OP(RecordOp)

}  // namespace
}  // namespace prunekit
