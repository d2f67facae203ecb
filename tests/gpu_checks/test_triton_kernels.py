"""The Triton kernels without a GPU: interpreted, and imported by those who have only half of it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@needs_triton
def test_the_interpreted_kernels_pass_their_tests() -> None:
    command = [sys.executable, "-m", "pytest", "-x", "tests/gpu_checks/interpreted_triton_kernels.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "passed" in done.stdout


@needs_triton
def test_the_package_imports_without_prunekit() -> None:
    code = "import sys; sys.modules['prunekit'] = None; import prunekit_kernels; prunekit_kernels.condensed_conv2d"
    _run_python(code, ROOT / "kernels")


def test_prunekit_imports_without_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import prunekit; prunekit.accelerate"
    _run_python(code, ROOT, ROOT / "kernels")


def _run_python(code: str, *paths: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
