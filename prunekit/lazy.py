"""Packages that import their modules when a name is first used (PEP 562), so that importing one costs next to nothing.

    __getattr__, __dir__ = lazy(__name__, {"prunekit.nn": ["accelerate"]}, rooms=["nn"])

Type checkers do not see such names: the package imports them under TYPE_CHECKING as well, and a test compares the two.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prunekit.extras import check_extra


def lazy(
    package: str, names: Mapping[str, Sequence[str]], rooms: Sequence[str] = (), extra: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the package's `__getattr__` and `__dir__`.

    Args:
        package: Its qualified name.
        names: Module → what the package takes from it.
        rooms: Subpackages that are attributes without having been imported.
        extra: What the modules need, a key of `prunekit.extras.EXTRAS`: where it is missing, using a name raises
            `MissingExtraError`.
    """
    modules = {name: module for module, found in names.items() for name in found}

    def getattr_lazily(name: str) -> Any:
        if name in rooms:
            return importlib.import_module(f"{package}.{name}")
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if extra is not None:
            check_extra(extra, f"{package}.{name}")
        value = getattr(importlib.import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def dir_lazily() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules, *rooms})

    return getattr_lazily, dir_lazily
