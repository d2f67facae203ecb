"""Torch's operators by name, as files hold them."""

from __future__ import annotations

import importlib
from functools import cache

import torch
from torch._ops import OpOverload

from prunekit.errors import InputError

#: Whose operators a model's file may name; a file is data, and what it calls must do nothing but compute.
_NAMESPACES = ("aten", "prunekit", "torchvision")
_REGISTERED_BY = {"prunekit": "prunekit.ops", "torchvision": "torchvision"}
# Arguments of the few operators that read or write files.
_FILE_ARGUMENTS = ("filename",)


@cache
def operator_named(name: str) -> OpOverload:
    """Return the operator that a name such as "aten.flatten.using_ints" means.

    Raises:
        InputError: there is no such operator here, or it is none that a file may call.
    """
    namespace, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    if namespace not in _NAMESPACES:
        raise InputError(f"Expected an operator of {', '.join(_NAMESPACES)}, got {name!r}.")
    if namespace in _REGISTERED_BY:
        try:
            importlib.import_module(_REGISTERED_BY[namespace])
        except ImportError as error:
            raise InputError(f"the model calls {name}, which needs {namespace}: {error}.") from error
    found = getattr(getattr(getattr(torch.ops, namespace), packet, None), overload, None)
    if not isinstance(found, OpOverload):
        raise InputError(f"Expected an operator of torch {torch.__version__}, got {name!r}.")
    if found._schema.is_mutable:
        raise InputError(f"Expected an operator that leaves its arguments alone, got {name!r}, which changes them.")
    if any(argument.name in _FILE_ARGUMENTS for argument in found._schema.arguments):
        raise InputError(f"Expected an operator that computes, got {name!r}, which reads or writes files.")
    return found
