"""Which steps of a model are safe: all that autograd noted are linear, or follow a rule."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from prunekit.errors import InputError

# Linear in the one operand that depends on the input, whatever autograd calls it. Names as of torch 2.10; trailing
# digits are the overload's.
_LINEAR = """
    Add Sub Rsub Neg Sum Mean Cat Stack Clone Copy ToCopy Contiguous View UnsafeView AsStrided ReshapeAlias Alias
    Permute Transpose T Squeeze Unsqueeze Expand Repeat Slice Select Index IndexSelect IndexAdd Gather Split
    SplitWithSizes UnsafeSplit Unbind Unfold Diagonal Flip Roll ConstantPadNd ReflectionPad2D ReplicationPad2D
    PixelShuffle PixelUnshuffle ChannelShuffle AvgPool2D AdaptiveAvgPool2D UpsampleNearest2D UpsampleNearestExact2D
    UpsampleBilinear2D UpsampleBilinear2DAa UpsampleBicubic2D UpsampleBicubic2DAa Col2Im Im2Col Cumsum Trace Tril
    Triu IndexPut IndexFill IndexCopy SelectScatter SliceScatter Zero Fill NativeBatchNorm CudnnBatchNorm
    MiopenBatchNorm CopySlices AccumulateGrad
"""
LINEAR = frozenset(_LINEAR.split())
# Linear as long as only one operand depends on the input; a quotient only in its first.
LINEAR_IN_EACH = frozenset(
    ["Mul", "Mm", "Bmm", "Mv", "Dot", "Addmm", "Addmv", "Baddbmm", "Convolution", "Linear", "Div", "Lerp"]
)
# The functions of this package.
RULES = frozenset(
    f"{rule}Function" for rule in ["Rescale", "MaxPool", "Product", "Conv", "RevealCancel", "Split", "Merge", "Swap"]
)


def check_graph(t: Tensor) -> None:
    """Raise InputError if anything between the input and t [N] is neither linear nor handled by a rule."""
    if t.grad_fn is None:
        raise InputError("DeepLIFT expected a target that depends on the model's input, but autograd sees no path.")
    seen, waiting = set(), [t.grad_fn]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        _check_node(node)
        waiting += [previous for previous, _ in node.next_functions if previous is not None]


def _check_node(node: Any) -> None:
    name = node.name().split("::")[-1]
    step = name.rstrip("0123456789").removesuffix("Backwards").removesuffix("Backward")
    live = [place for place, (previous, _) in enumerate(node.next_functions) if previous is not None]
    is_linear_here = step in LINEAR_IN_EACH and len(live) == 1 and not (step == "Div" and live != [0])
    if step not in LINEAR and step not in RULES and not is_linear_here:
        raise InputError(
            f"DeepLIFT has no rule for a step of the model or target that autograd calls {name}"
            f"{' of several activations' if step in LINEAR_IN_EACH else ''}."
        )
