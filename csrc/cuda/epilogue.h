// Where a convolution's activation stands: what launchers and kernels must agree on.
#pragma once

namespace prunekit {

enum ActivationPlace {
  NO_ACTIVATION,
  BEFORE_RESIDUAL,  // activation(sum + bias) + residual, as in darknet
  AFTER_RESIDUAL,   // activation(sum + bias + residual), as in ResNets
};

}  // namespace prunekit
