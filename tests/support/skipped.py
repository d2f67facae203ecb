"""What a whole run of the tests will skip on this machine, and why: said at its start, not only at its end."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import pytest
import torch

from prunekit.ops.native import cuda_status, native_status
from tests.support.browser import find_browser
from tests.support.cuda_compiler import disassembler, nvcc
from tests.support.emulated_kernels import COMPILER
from tests.support.external_files import cifar10, coco128, darknet_library, official_tiny_weights, report_tables

#: Packages that no extra of the tests brings: what is compared with each, and how to get it.
MODULES = {
    "triton": ("kernels in Triton", "pip install 'prunekit[triton]'"),
    "torchvision": ("torchvision's detectors and models", "make test-torchvision"),
    "openvino": ("OpenVINO in benchmarks", "pip install 'prunekit[peers]'"),
    "nncf": ("int8 of OpenVINO in benchmarks", "pip install 'prunekit[peers]'"),
    "tensorboard": ("TensorBoard's logs", "pip install 'prunekit[tensorboard]'"),
    "ray": ("experiments on Ray", "pip install 'prunekit[ray]'"),
    "mlflow": ("runs in MLflow", "pip install 'prunekit[mlflow]'"),
    "imagecorruptions": ("corruptions against their peer", "pip install 'prunekit[corruptions-peer]'"),
    "torchattacks": ("AutoAttack against its peer", "pip install --no-deps torchattacks==3.5.1"),
}
#: Files and programs from outside: what is tested with each, and what finds it or skips with the reason.
FILES: dict[str, Callable[[], object]] = {
    "darknet as an oracle": darknet_library,
    "the official weights of yolov3-tiny": official_tiny_weights,
    "coco128": coco128,
    "CIFAR-10": cifar10,
    "the report's tables": report_tables,
    "pages in a browser": find_browser,
}


def skipped() -> Iterator[str]:
    """Yield a line for each group of tests that this machine cannot run."""
    yield from _of_this_machine()
    for module, (what, how) in MODULES.items():
        if importlib.util.find_spec(module) is None:
            yield f"{what}: {module} is not installed ({how})"
    for what, find in FILES.items():
        try:
            find()
        except pytest.skip.Exception as reason:
            yield f"{what}: {reason.msg}"


def _of_this_machine() -> Iterator[str]:
    native, cuda = native_status(), cuda_status()
    if not native.available:
        yield f"the compiled engine: {native.reason}"
    if not COMPILER:
        yield "emulated GPU kernels, sanitizers: no g++ on this machine"
    if nvcc() is None:
        yield "compiling for GPUs: no nvcc on this machine"
    elif disassembler() is None:
        yield "the machine code of GPU kernels: no nvdisasm on this machine"
    if not torch.cuda.is_available():
        yield "GPU kernels on a GPU: torch finds none (make gpu runs them on a machine that has one)"
    elif not cuda.available:
        yield f"CUDA kernels on the GPU: {cuda.reason}"
