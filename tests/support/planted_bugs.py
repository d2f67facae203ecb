"""Whether the emulation catches a kernel with one planted bug."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from tests.support.emulated_kernels import NUM_JOBS, Build, Case, EmulationError, emulate
from tests.support.oracles import TOLERANCE, relative_difference

#: (file in csrc/cuda, text, its replacement, the sanitizer that sees it where no result need change)
Mutant = tuple[str, str, str, str]


def all_caught(mutants: Mapping[str, Mutant], problems: Sequence[tuple[Case, Tensor]]) -> dict[str, bool]:
    """Whether each is caught; compilers and emulators are processes, one a core."""
    emulate([case for case, _ in problems], Build())  # what all of them share is made before they begin
    with ThreadPoolExecutor(NUM_JOBS) as pool:
        return dict(zip(mutants, pool.map(lambda mutant: is_caught(mutant, problems), mutants.values()), strict=True))


def is_caught(mutant: Mutant, problems: Sequence[tuple[Case, Tensor]]) -> bool:
    """Whether the emulator stops, or an output is not the float64 loop's."""
    file, text, replacement, sanitizer = mutant
    build = Build(sanitizer=sanitizer, edits=((file, text, replacement),))
    try:
        outputs = emulate([case for case, _ in problems], build, seed=3)
    except EmulationError:
        return True
    return any(_is_wrong(expected, y) for (_, expected), y in zip(problems, outputs, strict=True))


def _is_wrong(expected: Tensor, y: Tensor) -> bool:
    return bool((~y.isfinite() & expected.isfinite()).any()) or relative_difference(expected, y) > TOLERANCE[y.dtype]
