"""The emulated `mma.sp` against a dense product: its registers laid out here anew, as PTX's manual tells."""

from __future__ import annotations

import random
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.emulated_kernels import COMPILER, Build, compiled

pytestmark = pytest.mark.skipif(not COMPILER, reason="no g++ to compile the emulated product with")

PAIRS = list(combinations(range(4), 2))
#: PTX's manual, with t' = t + 4 · (i / 2): lane 4 · g + t holds in register i of the first operand the two stored in
#: columns 4 · t' to 4 · t' + 3 of row g + 8 · (i % 2); of the second rows 8 · i + 2 · t and the next, column g; of the
#: sum rows g, g, g + 8, g + 8, columns 2 · t and 2 · t + 1 in turn. Of lanes 4 · g + 2 · selector and the next, word j
#: of the metadata has in bits 4 · (t' % 4) the columns in the four t' of row g, and 16 bits higher of row g + 8.
LANES = [(lane // 4, lane % 4) for lane in range(32)]


def _run(folder: Path, words: list[int], arrays: list[np.ndarray[Any, Any]]) -> subprocess.CompletedProcess[str]:
    parts = [np.array(words, np.int64), *arrays]
    (folder / "problem").write_bytes(b"".join(np.int64(p.size).tobytes() + p.tobytes() for p in parts))
    program = compiled(Build(), "sparse_product")
    command: list[Path | str] = [program, folder / "problem", folder / "result", "3"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _operands(dtype: torch.dtype, selector: int, draw: random.Random) -> tuple[list[np.ndarray[Any, Any]], Tensor]:
    generator = torch.Generator().manual_seed(draw.randrange(1 << 30))
    b = torch.randn(32, 8, generator=generator).to(dtype)
    start = torch.randn(16, 8, generator=generator)
    dense, a = torch.zeros(16, 32, dtype=dtype), torch.zeros(32, 8, dtype=dtype)
    # The lanes that are not asked hold something else.
    metadata = np.array([draw.randrange(1 << 32) for _ in range(32)], np.uint32)
    for group in range(8):
        metadata[4 * group + 2 * selector : 4 * group + 2 * selector + 2] = 0
    for lane, (group, thread) in enumerate(LANES):
        for register in range(4):
            row, four = group + 8 * (register % 2), thread + 4 * (register // 2)
            first, second = draw.choice(PAIRS)
            pair = torch.randn(2, generator=generator).to(dtype)
            dense[row, 4 * four + first], dense[row, 4 * four + second] = pair
            a[lane, 2 * register : 2 * register + 2] = pair
            word = np.uint32((first | second << 2) << (16 * (register % 2) + 4 * (four % 4)))
            metadata[4 * group + 2 * selector + four // 4] |= word
    inputs = torch.stack([torch.stack([b[8 * i + 2 * t + h, g] for i in range(4) for h in range(2)]) for g, t in LANES])
    sums = torch.tensor([[start[g + 8 * (i // 2), 2 * t + i % 2] for i in range(4)] for g, t in LANES])
    expected = start.double() + dense.double() @ b.double()
    bits = [t.contiguous().view(torch.int16).numpy() for t in (a, inputs)]
    return [*bits, metadata.view(np.int32), sums.numpy()], expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_emulated_product_is_the_dense_one(dtype: torch.dtype, tmp_path: Path) -> None:
    draw = random.Random(91)
    for selector in (0, 1, 0, 1):
        arrays, expected = _operands(dtype, selector, draw)
        done = _run(tmp_path, [int(dtype == torch.bfloat16), selector], arrays)
        assert done.returncode == 0, done.stderr
        result = np.fromfile(tmp_path / "result", np.float32).reshape(32, 4)
        y = torch.zeros(16, 8, dtype=torch.float64)
        for (group, thread), sums in zip(LANES, result, strict=True):
            for i in range(4):
                y[group + 8 * (i // 2), 2 * thread + i % 2] = float(sums[i])
        assert torch.allclose(y, expected, atol=1e-4)


def test_metadata_out_of_order_end_the_emulation(tmp_path: Path) -> None:
    arrays, _ = _operands(torch.float16, 0, random.Random(92))
    arrays[2][4] &= ~0xF  # twice the same place
    done = _run(tmp_path, [0, 0], arrays)
    assert "ascending order" in done.stderr
