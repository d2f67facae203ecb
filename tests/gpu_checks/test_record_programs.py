"""The PTX of the record kernel's loops, run instruction by instruction against sums over the weights themselves."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from record.programs import PROGRAMS, TILE_W, Program

from prunekit.ops.cuda.record.cost import RECORD_COSTS
from prunekit.ops.cuda.record.filter import ROWS, pack_records
from tests.support.ptx_interpreter import PtxError, run_ptx

Edit = Callable[[str], str]


def relative_error(program: Program, seed: int, edit: Edit = lambda line: line) -> float:
    """Run every segment of a random filter for one lane; the largest error beside the largest sum, inf if it stops."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    is_any = program.stride == 0
    r, s = (draw.randint(1, 3), draw.randint(2, 3)) if is_any else (program.r, program.s)
    steps = (draw.randint(1, 3), draw.randint(2, 3)) if is_any else (program.stride,) * 2
    dilation = (draw.randint(1, 2), draw.randint(2, 3)) if is_any else (1, 1)
    channels, taps = 4, 1 if is_any else program.taps
    weight = torch.randn(ROWS, channels, r, s, generator=generator)
    mask = torch.rand(weight.shape, generator=generator) < 0.4
    packed = pack_records(weight, mask, 1, taps, channels, 2)
    pitch = -(-((TILE_W - 1) * steps[1] + (s - 1) * dilation[1] + 1) // 4) * 4 + 4
    height, turn, skew = (program.tile_h - 1) * steps[0] + (r - 1) * dilation[0] + 1, program.tile_h * steps[0], 6
    tile = torch.randn(channels, height, pitch, generator=generator)

    sums = torch.zeros(ROWS, program.tile_h, TILE_W, dtype=torch.float64)
    for row, k in enumerate(packed.rows.tolist()):
        for _, c, tap_h, tap_w in (weight * mask)[k : k + 1].nonzero().tolist():
            top, left = tap_h * dilation[0], tap_w * dilation[1]
            part = tile[c, top :: steps[0], left :: steps[1]][: program.tile_h, :TILE_W]
            sums[row] += weight[k, c, tap_h, tap_w].double() * part.double()

    if is_any:
        distances = [steps[0] * pitch, steps[1], dilation[0] * pitch, dilation[1]]
        staged = tile
    else:  # as the kernel stages it: for stride 2 even columns first, and a gap where a window leaves the lane's lines
        distances = [pitch // program.stride, pitch // program.stride + skew]
        parted = torch.cat([tile[..., i :: program.stride] for i in range(program.stride)], -1).flatten(1)
        gap = torch.full((channels, skew), float("nan"))
        staged = torch.cat([parted[:, : turn * pitch], gap, parted[:, turn * pitch :], gap[:, :-2]], 1)
    plane = staged.numel() // channels
    shared = np.concatenate([staged.numpy().ravel().view(np.int32), packed.records.numpy().ravel()])
    found: list[float | int] = [0.0] * (ROWS * program.pixels)
    lines = [edit(line) for line in program.lines()]
    try:
        for start in packed.starts[:-1].tolist():
            addresses = [staged.numel() * 4 + 8 * start, 0]
            found = run_ptx(lines, [*found, *addresses, *(4 * n for n in (plane, *distances))], shared)[: len(found)]
    except PtxError:
        return float("inf")
    ours = torch.tensor([float(np.float32(f)) for f in found], dtype=torch.float64).view_as(sums)
    return float((ours - sums).abs().max() / sums.abs().max())


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_a_program_adds_every_kept_weight_times_its_input(program: Program) -> None:
    for seed in range(2):
        assert relative_error(program, seed) < 1e-6


#: (what is wrong, the edit of a line)
MUTANTS: list[tuple[str, Edit]] = [
    ("a sum is another's", lambda line: line.replace("fma.rn.f32 %9, ", "fma.rn.f32 %8, ")),
    ("an input is its neighbor", lambda line: line.replace("weight, x1,", "weight, x0,")),
    ("half a line is the other half", lambda line: line.replace("[place+8]", "[place+0]")),
    ("the argument's bits stand elsewhere", lambda line: line.replace("part, 16;", "part, 15;")),
    ("records are skipped", lambda line: line.replace("add.u32 at, at, 8;", "add.u32 at, at, 16;")),
    (
        "every record is the first slot's",
        lambda line: line.replace("mov.b32 operation, next;", "mov.b32 operation, 0;"),
    ),
    ("two slots change places", lambda line: line.replace("SLOT2_%=, SLOT3_%=", "SLOT3_%=, SLOT2_%=")),
    ("a line is loaded twice", lambda line: "mov.b32 place, place;" if line.startswith("add.u32 place") else line),
]


@pytest.mark.parametrize(("name", "edit"), MUTANTS, ids=[name for name, _ in MUTANTS])
def test_a_planted_bug_is_caught(name: str, edit: Edit) -> None:
    changed = [program for program in PROGRAMS if _lines(program) != _lines(program, edit)]
    assert changed, name
    assert any(relative_error(program, seed, edit) > 1e-3 for program in changed for seed in range(2))


def _lines(program: Program, edit: Edit = lambda line: line) -> list[str]:
    return [edit(line) for line in program.lines()]


def test_the_model_knows_every_program() -> None:
    def kernels(programs: Iterable[Program]) -> set[tuple[int, int, int]]:
        return {(program.taps, program.stride, program.tile_h) for program in programs}

    assert kernels(PROGRAMS) == RECORD_COSTS.keys()
    assert all(program.rows == ROWS for program in PROGRAMS)
