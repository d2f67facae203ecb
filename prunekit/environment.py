"""What numbers are measured on: versions, processor, threads, instruction sets, native kernels."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from importlib import metadata
from typing import Any

import torch

from prunekit.nn import native_status
from prunekit.processor import processor

PACKAGES = ("prunekit", "torch", "numpy", "pillow", "pycocotools", "safetensors", "triton", "captum")


@cache  # reading a package's metadata takes milliseconds, and keys of many jobs hold versions
def installed_version(package: str) -> str | None:
    """Return an installed distribution's version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe_environment() -> dict[str, Any]:
    """Return the facts that environment.json keeps; call it after the number of threads is set."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: installed_version(package) for package in PACKAGES},
        "processor": asdict(processor()),
        "threads": torch.get_num_threads(),
        "native_kernels": asdict(native_status()),
        "torch_cuda": torch.version.cuda,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch_build": torch.__config__.show().splitlines(),
    }


@contextmanager
def thread_count(count: int | None) -> Iterator[None]:
    """Use `count` threads inside the block; None leaves torch's choice."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
