"""Modules of a user's own, in the working directory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from prunekit import task

#: A classifier of 8×8 pixels, `net`, that can be bounded and is quick to train.
SMALL_NET = """
from torch import nn

def net(num_classes):
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(96, num_classes))

net.task = "classification"
"""


@contextmanager
def own_modules(folder: Path, monkeypatch: pytest.MonkeyPatch, **sources: str) -> Iterator[None]:
    """Work in a folder with modules, by name, as if nobody had imported them before; they are forgotten at the end."""
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    monkeypatch.setattr(task, "_NAMED", {})
    monkeypatch.setattr(task, "_PLUGINS", set())
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    try:
        yield
    finally:
        for name in [name for name, module in sys.modules.items() if _is_in(folder, module)]:
            del sys.modules[name]


def _is_in(folder: Path, module: ModuleType) -> bool:
    return str(folder) in str(getattr(module, "__file__", ""))
