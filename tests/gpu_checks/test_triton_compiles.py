"""The Triton kernels compiled ahead of time for GPUs that are not here: no spills, tensor cores where promised."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.support import ROOT

ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
# Shared memory that a block may have, in KB.
SHARED_KB = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    cache = tmp_path_factory.mktemp("triton")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'kernels'}", "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "tests/support/compile_triton_kernels.py", *ARCHITECTURES]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_mode_compiles_without_spills_and_fits_shared_memory(rows: list[dict[str, Any]]) -> None:
    assert len(rows) == 1 + 4 * (len(ARCHITECTURES) - 1)
    for row in rows:
        assert row["stack"] == row["LDL"] == row["STL"] == 0, row
        assert row["shared"] <= 1024 * SHARED_KB[row["architecture"]], row


def test_tensor_cores_and_asynchronous_copies_are_there_where_promised(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        tensor_core = row["HMMA"] + row["HGMMA"] + row["UTCHMMA"]
        if row["mode"] == "float32":
            assert tensor_core == 0, row
            assert row["FFMA"] + row["FFMA2"] > 0, row
        else:
            assert tensor_core > 0, row
