"""What a bench is asked to do, checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from prunekit.benchmark.engines.precisions import INT8
from prunekit.benchmark.peers import EAGER, FLOAT32_PEERS, PEERS
from prunekit.benchmark.problems import NETS, RATIOS, UNSTRUCTURED
from prunekit.benchmark.rows import Question
from prunekit.errors import InputError
from prunekit.prune.blocks import BLOCKS

RUNS: dict[Question, int] = {"end-to-end": 20, "layers": 30}
QUICK_RUNS, QUICK_RATIOS = 6, (50.0, 90.0, 99.0)
_CONTROL_RATIO = 90.0
_SIZE_STEP = 32  # the coarsest stride of the nets

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """The choices of one command.

    Attributes:
        question: "layers" or "end-to-end".
        models: names in `NETS`.
        threads: numbers of threads, each a measurement of its own.
        ratios: percent of each layer's weights to remove.
        peers: names in `PEERS`; torch eager always takes part.
        runs: timed calls of each competitor.
        width: share of the nets' channels.
        image_size: pixels; None takes each net's own.
        memory: measure each competitor's memory in a process of its own.
        structure: what of a layer's weights goes together, a name in `BLOCKS`.
    """

    question: Question
    models: tuple[str, ...]
    threads: tuple[int, ...]
    ratios: tuple[float, ...] = RATIOS
    peers: tuple[str, ...] = FLOAT32_PEERS
    runs: int = 20
    width: float = 1.0
    image_size: int | None = None
    memory: bool = False
    structure: str = UNSTRUCTURED

    def __post_init__(self) -> None:
        """Check everything.

        Raises:
            InputError: a name is unknown, or a number is out of its range.
        """
        _known("--models", self.models, NETS)
        _known("--peers", self.peers, PEERS)
        _known("--structure", (self.structure,), BLOCKS)
        _each("--threads", self.threads, lambda count: 1 <= count <= 1024, "whole numbers from 1 to 1024")
        _each("--ratios", self.ratios, lambda ratio: 0 <= ratio < 100, "percentages from 0 to below 100")
        _each("--runs", (self.runs,), lambda runs: runs >= 2, "at least 2")
        _each("--width", (self.width,), lambda width: 0 < width <= 4, "a number above 0, at most 4")
        sizes = () if self.image_size is None else (self.image_size,)
        is_size = range(_SIZE_STEP, 4096 + 1, _SIZE_STEP).__contains__
        _each("--image-size", sizes, is_size, f"a multiple of {_SIZE_STEP} pixels up to 4096")
        if self.memory and self.question == "layers":
            raise InputError("--memory: expected with whole nets (end-to-end), got with layers.")

    @property
    def control_ratio(self) -> float | None:
        """The ratio at which pruned weights run on the dense path: the one nearest to 90 %."""
        pruned = [ratio for ratio in self.ratios if ratio > 0]
        return min(pruned, key=lambda ratio: abs(ratio - _CONTROL_RATIO)) if pruned else None

    @property
    def has_int8(self) -> bool:
        """Whether prunekit takes part in int8 too: on whole nets, where a peer does."""
        return self.question == "end-to-end" and any(PEERS[peer].precision == INT8 for peer in self.peers)

    @property
    def all_peers(self) -> tuple[str, ...]:
        """The peers with torch eager among them."""
        return tuple(dict.fromkeys((EAGER, *self.peers)))


def split(option: str, text: str, kind: Callable[[str], T]) -> tuple[T, ...]:
    """Read "a,b" as values, each once.

    Raises:
        InputError: a part is no such value.
    """
    try:
        return tuple(dict.fromkeys(kind(part.strip()) for part in text.split(",")))
    except ValueError:
        raise InputError(f"{option}: expected numbers separated by commas, got {text!r}.") from None


def _known(option: str, names: Sequence[str], table: object) -> None:
    known = list(table)  # type: ignore[call-overload]
    for name in names:
        if name not in known:
            raise InputError(f"{option}: expected some of {', '.join(known)}, got {name!r}.")


def _each(option: str, values: Sequence[T], is_right: Callable[[T], bool], expected: str) -> None:
    for value in values:
        if not is_right(value):
            raise InputError(f"{option}: expected {expected}, got {value}.")
