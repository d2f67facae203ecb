"""Does a damaged file end in one sentence or in right results? Seeded damage to each kind of file that prunekit reads.

    python -m bench.fuzz_files --kind coco,darknet --count 2000 --seed 0

Each mutation (bench/mutations.py) is opened and used. Three outcomes are told apart: an InputError; a result that is
right, which is bit-equal for files that prunekit writes and "in range and finite" for files without a digest; and
anything else, which is a fault and makes the exit code 1. `--only N` repeats one mutation and shows its traceback.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.table import Table

from bench.fuzz_data_kinds import CocoKind, DarknetKind, DetectorKind, ImageKind
from bench.fuzz_model_kinds import (
    AcceleratedKind,
    CompactedDetectorKind,
    CompactedKind,
    MasksKind,
    SignedAcceleratedKind,
    SignedCompactedKind,
    SignedDetectorKind,
)
from bench.mutations import mutate
from prunekit.errors import InputError


class Kind(Protocol):
    """A kind of file that prunekit reads.

    Attributes:
        name: What `--kind` calls it.
    """

    name: str

    def write(self, folder: Path) -> Path:
        """Write a valid file, and whatever it needs beside it, into an empty folder; return the file to damage."""

    def open(self, path: Path) -> object:
        """Open a file and use what it holds, as a user does; return what `is_right` judges.

        Raises:
            InputError: The file is refused; any other exception is a fault.
        """

    def is_right(self, expected: object, found: object) -> bool:
        """Return whether what a damaged file gave is right.

        Args:
            expected: What `open` returned for the valid file.
            found: What it returned for the damaged one.
        """


@runtime_checkable
class SelfDamaging(Protocol):
    """A kind that damages its files by itself."""

    def mutate(self, content: bytes, rng: random.Random) -> bytes:
        """Return a damaged copy of a file's content."""


#: By the name that `--kind` takes. A new kind is a class with the methods of `Kind` and a line here.
KINDS: Mapping[str, Callable[[], Kind]] = {
    **{kind.name: kind for kind in (CocoKind, ImageKind, DarknetKind, DetectorKind, MasksKind)},
    **{kind.name: kind for kind in (AcceleratedKind, CompactedKind, CompactedDetectorKind)},
    **{kind.name: kind for kind in (SignedAcceleratedKind, SignedCompactedKind, SignedDetectorKind)},
}


@dataclass
class Outcome:
    """What became of the mutations of one kind.

    Attributes:
        kind: Its name.
        mutations: How many were opened.
        refused: How many ended in an InputError.
        right: How many were opened with a right result.
        first_fault: Number of the first mutation that did neither, and what it did; None where there is none.
    """

    kind: str
    mutations: int = 0
    refused: int = 0
    right: int = 0
    first_fault: str | None = None

    @property
    def faults(self) -> int:
        """How many mutations did neither."""
        return self.mutations - self.refused - self.right


def fuzz(kind: Kind, numbers: Sequence[int], seed: int, folder: Path) -> Outcome:
    """Open mutations of a kind of file and count what becomes of them.

    Args:
        kind: The kind.
        numbers: Which mutations; a number and the seed say one.
        seed: The seed.
        folder: An empty folder to write into.

    Raises:
        RuntimeError: The valid file itself is not right, so that nothing could be learned.
    """
    path = kind.write(folder)
    content, expected = path.read_bytes(), kind.open(path)
    if not kind.is_right(expected, kind.open(path)):
        raise RuntimeError(f"Expected the valid file of kind {kind.name} to be right, but it is not")
    damage = kind.mutate if isinstance(kind, SelfDamaging) else mutate
    outcome = Outcome(kind.name)
    for number in numbers:
        path.write_bytes(damage(content, random.Random(f"{kind.name} {seed} {number}")))
        outcome.mutations += 1
        try:
            is_right = kind.is_right(expected, kind.open(path))
        except InputError:
            outcome.refused += 1
            continue
        except Exception as error:
            fault = f"{number}: {type(error).__name__}: {error}"
            if len(numbers) == 1:
                traceback.print_exc()
        else:
            outcome.right += is_right
            fault = f"{number}: opened with a wrong result"
        if outcome.faults and outcome.first_fault is None:
            outcome.first_fault = fault
    return outcome


def main(argv: Sequence[str] | None = None) -> int:
    """Run the kinds that the command line names and print their table; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kind", default="all", help=f"all, or some of {', '.join(KINDS)}, separated by commas")
    parser.add_argument("--count", type=int, default=2000, help="mutations per kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of the one mutation to repeat")
    arguments = parser.parse_args(argv)
    names = list(KINDS) if arguments.kind == "all" else arguments.kind.split(",")
    if unknown := [name for name in names if name not in KINDS]:
        parser.error(f"Expected kinds out of {', '.join(KINDS)}, got {', '.join(unknown)}")
    if arguments.count < 1:
        parser.error(f"Expected a count of at least 1, got {arguments.count}")
    numbers = range(arguments.count) if arguments.only is None else [arguments.only]
    outcomes = [_fuzz_in_new_folder(KINDS[name](), numbers, arguments.seed) for name in names]
    console = Console()
    console.print(_table(outcomes))
    for outcome in outcomes:
        if outcome.first_fault is not None:
            console.print(f"{outcome.kind} {outcome.first_fault}", soft_wrap=True, markup=False, highlight=False)
    return int(any(outcome.faults for outcome in outcomes))


def _fuzz_in_new_folder(kind: Kind, numbers: Sequence[int], seed: int) -> Outcome:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of images that claim to be large
        return fuzz(kind, numbers, seed, Path(folder))


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = Table("kind", "mutations", "InputError", "right result", "anything else")
    for outcome in outcomes:
        counts = (outcome.mutations, outcome.refused, outcome.right, outcome.faults)
        table.add_row(outcome.kind, *map(str, counts))
    return table


if __name__ == "__main__":
    sys.exit(main())
