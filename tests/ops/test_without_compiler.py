"""Without the compiled extension everything still works, on the reference, and says so once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

WITHOUT_NATIVE = """
import sys
sys.modules["prunekit._native"] = None  # what a failed build leaves: an import that fails
import torch, prunekit
status = prunekit.nn.native_status()
assert not status.available and "compiler" in status.reason, status
conv = torch.nn.Conv2d(8, 16, 3).eval()
with torch.no_grad():
    conv.weight.mul_(torch.rand_like(conv.weight) > 0.9)
    x = torch.randn(2, 8, 9, 9)
    masked = prunekit.nn.MaskedConv2d.from_dense(conv)
    assert torch.allclose(masked(x), conv(x), atol=1e-6)
    fast = prunekit.accelerate(torch.nn.Sequential(conv), x)
    assert torch.allclose(fast(x), conv(x), atol=1e-6)
assert fast.report.rows[0].reason == "the compiled extension is not there"
assert any("compiler" in note for note in fast.report.notes)
"""


def test_the_package_works_on_the_reference_and_says_so_once() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_NATIVE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("running on torch's dense convolution") == 1


@pytest.mark.parametrize("required", [False, True])
def test_a_build_without_compiler_goes_on_unless_the_extension_is_required(tmp_path: Path, required: bool) -> None:
    environment = {**os.environ, "CC": "/bin/false", "CXX": "/bin/false"}
    environment |= {"PRUNEKIT_REQUIRE_NATIVE": "1"} if required else {}
    build = ["build_ext", "--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    done = subprocess.run(
        [sys.executable, "setup.py", *build], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode != 0) == required
    assert ("the compiled extension was left out" in done.stderr) != required
    assert not list(tmp_path.rglob("*.so"))
