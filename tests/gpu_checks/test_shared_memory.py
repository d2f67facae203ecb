"""Python's and C++'s formulas of a block's shared memory are one: cuts that are chosen must fit the device."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunekit.ops.cuda.condensed.cost import MODEL as CONDENSED
from prunekit.ops.cuda.condensed.cost import CondensedProblem
from prunekit.ops.cuda.devices import GPUS
from prunekit.ops.cuda.record.cost import MODEL as RECORD
from prunekit.ops.cuda.record.cost import RecordProblem
from prunekit.ops.cuda.semi_structured.cost import MODEL as SEMI_STRUCTURED
from tests.support import ROOT
from tests.support.emulated_kernels import COMPILER

pytestmark = pytest.mark.skipif(not COMPILER, reason="no g++ to compile the launchers' arithmetic with")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, emulation = tmp_path_factory.mktemp("launch") / "shared_memory", ROOT / "tests" / "gpu_checks" / "emulation"
    includes = [f"-I{ROOT / 'csrc' / 'cuda'}", f"-I{emulation}"]
    source = str(emulation / "shared_memory.cpp")
    subprocess.run([COMPILER, "-std=c++17", "-O0", "-Wall", "-Werror", *includes, source, "-o", str(out)], check=True)
    return out


def _problems(count: int) -> Iterator[tuple[RecordProblem, random.Random]]:
    draw = random.Random(12)
    for _ in range(count):
        groups, kernel = draw.choice((1, 1, 2)), draw.choice(((1, 1), (3, 3), (3, 3), (5, 2)))
        channels = groups * draw.choice((8, 40, 256)), draw.choice((3, 16, 200))
        stride = draw.choice(((1, 1), (2, 2), (3, 1)))
        dilation = draw.choice(((1, 1), (2, 3)))
        size = draw.choice(((13, 13), (52, 40), (7, 90)))
        density = draw.choice((0.5, 0.1, 0.01))
        yield RecordProblem(*channels, kernel, groups, density, 1, size, stride, (1, 1), dilation), draw


def _line(is_record: bool, problem: RecordProblem | CondensedProblem, chunk: int, longest: int, cut: list[int]) -> str:
    geometry = *problem.size, *problem.stride, *problem.dilation
    weight = problem.out_channels, problem.group_channels, *problem.kernel_size, problem.groups
    return " ".join(map(str, (int(is_record), *geometry, *weight, chunk, longest, *cut)))


def test_both_formulas_give_the_same_bytes(program: Path) -> None:
    lines, expected = [], []
    for problem, draw in _problems(60):
        for launch in draw.sample(list(RECORD.launches(problem, 96 << 10)), 5):
            longest = 2 * draw.randint(0, 400)
            cut = [*launch.words(), launch.slices, problem.window_taps, 0]
            lines.append(_line(True, problem, launch.chunk_channels, longest, cut))
            expected.append(RECORD.shared_bytes(problem, launch, longest))
        here = CondensedProblem.of(problem)
        for launch_16 in draw.sample(list(CONDENSED.launches(here, 96 << 10)), 5):
            longest = draw.randint(0, 100)
            lines.append(_line(False, here, launch_16.chunk_channels, longest, [*launch_16.words(), 0]))
            expected.append(CONDENSED.shared_bytes(here, launch_16, longest))
        for sparse in draw.sample(SEMI_STRUCTURED.best_launches(here, GPUS["a100"], 200), 5):
            longest = draw.randint(0, 100)
            cut = [*sparse.words(), sparse.fragments]
            lines.append(_line(False, here, sparse.chunk_channels, longest, cut))
            expected.append(SEMI_STRUCTURED.shared_bytes(here, sparse, longest))
    done = subprocess.run([program], input="\n".join(lines), capture_output=True, text=True, check=True)
    assert list(map(int, done.stdout.split())) == expected
    assert len(expected) == 900


def test_chosen_cuts_fit_their_device() -> None:
    for problem, draw in _problems(20):
        gpu = draw.choice(list(GPUS.values()))
        here = CondensedProblem.of(problem)
        for launch in RECORD.best_launches(problem, gpu, 3):
            assert RECORD.shared_bytes(problem, launch) <= gpu.shared_bytes
        for launch_16 in CONDENSED.best_launches(here, gpu, 3):
            assert CONDENSED.shared_bytes(here, launch_16) <= gpu.shared_bytes
