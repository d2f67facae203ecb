"""The one `torch.library` fragment that prunekit's ops are defined in, with types that torch's own API lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

_LIBRARY = torch.library.Library("prunekit", "FRAGMENT")  # type: ignore[no-untyped-call]
_Function = TypeVar("_Function", bound=Callable[..., Any])


def define(schema: str) -> None:
    """Define an op of the namespace `prunekit` by its schema."""
    _LIBRARY.define(schema)  # type: ignore[no-untyped-call]


def kernel(name: str, dispatch_key: str) -> Callable[[_Function], _Function]:
    """Decorate what runs for one device, such as "CUDA"."""

    def register(function: _Function) -> _Function:
        _LIBRARY.impl(name, function, dispatch_key)  # type: ignore[no-untyped-call]
        return function

    return register


def fallback(name: str) -> Callable[[_Function], _Function]:
    """Decorate the reference: what runs wherever no kernel is registered for the device."""
    return kernel(name, "CompositeExplicitAutograd")


def fake(name: str) -> Callable[[_Function], _Function]:
    """Decorate the fake kernel: the output's shape and dtype without its values."""

    def register(function: _Function) -> _Function:
        torch.library.register_fake(f"prunekit::{name}", function, lib=_LIBRARY)
        return function

    return register
