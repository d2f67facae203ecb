"""A copy of a model in which every weight is a plain parameter; the model is neither run nor changed."""

from __future__ import annotations

import torch
from torch import nn

from prunekit.errors import InputError, first_line
from prunekit.graph.calls import Call
from prunekit.nn import MaskedConv2d
from prunekit.nn.evaluating import set_eval_mode
from prunekit.nn.fusion import replace_module
from prunekit.nn.model_copies import deep_copy, make_weights_plain
from prunekit.nn.unwrapping import unwrap_submodules


@torch.no_grad()
def plain_copy(model: nn.Module, example: Call) -> nn.Module:
    """Copy a model; computed weights (pruning, parametrizations, weight_norm, MaskedConv2d) become plain parameters.

    Wrappers of submodules, such as torch.compile's, are taken off.

    Raises:
        InputError: The model cannot be copied, or does not run on the example.
    """
    try:
        plain = deep_copy(model)
    except Exception as error:  # deepcopy runs foreign code
        raise InputError(f"Expected a model that can be copied, but {type(model).__name__} raised: {error}.") from error
    unwrap_submodules(plain)
    set_eval_mode(plain)  # a module of an exported program has a flag that says nothing
    _check_runs(plain, example)
    for name, module in list(plain.named_modules()):
        if isinstance(module, MaskedConv2d):
            dense = module.to_dense()
            if name:
                replace_module(plain, name, dense)
            plain = plain if name else dense
        else:
            make_weights_plain(module)
    return plain


def _check_runs(model: nn.Module, example: Call) -> None:
    try:
        example.run(model)
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in example.tensors)
        raise InputError(
            f"Expected a model that runs on the example input of shape {shapes}, but {type(model).__name__} raised "
            f"{type(error).__name__}: {first_line(error)}."
        ) from error
