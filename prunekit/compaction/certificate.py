"""What a compaction says about itself: every group of channels, the differences, and what it saved."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from prunekit.comparison import Comparison


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that were decided on together.

    Attributes:
        layers: The convolutions and linear layers that make them.
        channels: How many each of the layers made.
        kept: How many it makes now, carriers among them.
        carriers: Masked channels that stayed to carry constants: index in the first layer → layers that they are for.
        folded: Constants other than zero that went into biases or carriers, over all readers.
        reasons: Why masked channels stayed, and how many for each reason; carriers are among them.
    """

    layers: tuple[str, ...]
    channels: int
    kept: int
    carriers: dict[int, list[str]] = field(default_factory=dict)
    folded: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def removed(self) -> int:
        """How many channels went."""
        return self.channels - self.kept


@dataclass(frozen=True)
class Difference:
    """Both models on one input.

    Attributes:
        input: "example" or "random", and the size; where discontinuous operators decided otherwise at ties, which.
        largest: The largest |difference| of any output number.
        relative: That of an output over the output's largest magnitude, the worst output's.
        tensors: How many tensors were compared; 0 in files of prunekit 1, which do not say.
        elements: How many numbers in them.
    """

    input: str
    largest: float
    relative: float
    tensors: int = 0
    elements: int = 0

    @classmethod
    def of(cls, name: str, found: Comparison) -> Difference:
        """Return what a comparison found on the input called `name`."""
        return cls(name, found.largest, found.relative, found.tensors, found.elements)


@dataclass(frozen=True)
class Certificate:
    """What was cut, and the proof that the model answers as before.

    Attributes:
        groups: Every group of channels, in the model's order.
        float64: Both models in float64, on the example and on random inputs of several sizes; empty where the model
            does not run in float64.
        float32: Both as they are, on the example, whatever the model's dtype is.
        parameters_before: Of the masked model; parameters_after: of the compacted one.
        macs_before: Multiply-accumulates on the example; macs_after: likewise.
        latency_ms_before: Median on the example in torch eager; None where it was not measured.
        latency_ms_after: Likewise.
        multiple_of: What numbers of channels were rounded up to; 1 is not at all.
        rounding_ms: Multiple → the latency measured with it, where it was chosen by measurement.
        kept_whole: Operations that channels are not followed through, and why: what flows into them was kept.
        notes: What else should be known.
        own_dtype: Both as they are, on the example and on random inputs of several sizes, where `float64` is empty.
        proof_dtype: What the proof was computed in: "float64", or the model's own.
    """

    groups: tuple[ChannelGroup, ...]
    float64: tuple[Difference, ...]
    float32: Difference
    parameters_before: int
    parameters_after: int
    macs_before: int
    macs_after: int
    latency_ms_before: float | None = None
    latency_ms_after: float | None = None
    multiple_of: int = 1
    rounding_ms: dict[int, float] = field(default_factory=dict)
    kept_whole: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    own_dtype: tuple[Difference, ...] = ()
    proof_dtype: str = "float64"

    @property
    def proof(self) -> tuple[Difference, ...]:
        """What the model was accepted on: `float64`, or `own_dtype` where that is empty."""
        return self.float64 or self.own_dtype

    @property
    def compared(self) -> Comparison:
        """How many numbers in how many tensors of how many inputs were compared, and the largest differences."""
        total = Comparison(inputs=0)
        for row in self.proof:
            total += Comparison(row.tensors, row.elements, 0.0, row.largest, row.relative)
        return total

    @property
    def removed(self) -> int:
        """Channels that went, every layer's counted."""
        return sum(group.removed * len(group.layers) for group in self.groups)

    @property
    def kept(self) -> int:
        """Channels that stayed, every layer's counted."""
        return sum(group.kept * len(group.layers) for group in self.groups)

    @property
    def max_difference_float64(self) -> float:
        """The largest relative difference in float64; nan where the model does not run in float64."""
        return max((row.relative for row in self.float64), default=math.nan)

    def reasons(self) -> dict[str, int]:
        """Return why masked channels stayed, and how many, over all groups."""
        found: Counter[str] = Counter()
        for group in self.groups:
            found.update(group.reasons)
        return dict(found)

    def to_json(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Certificate:
        """Read what `to_json` wrote; raise KeyError, TypeError or ValueError where it is something else."""
        values = dict(document)
        values["groups"] = tuple(
            ChannelGroup(
                **{
                    **group,
                    "layers": tuple(group["layers"]),
                    "carriers": {int(index): names for index, names in group["carriers"].items()},
                }
            )
            for group in values["groups"]
        )
        for name in ("float64", "own_dtype"):
            values[name] = tuple(Difference(**row) for row in values.get(name, ()))
        values["float32"] = Difference(**values["float32"])
        values["rounding_ms"] = {int(multiple): ms for multiple, ms in values["rounding_ms"].items()}
        values["kept_whole"], values["notes"] = tuple(values["kept_whole"]), tuple(values["notes"])
        return cls(**values)

    def __str__(self) -> str:
        """Return it as text for people."""
        lines = [
            f"{self.removed} of {self.removed + self.kept} channels removed, "
            f"parameters {self.parameters_before:,} → {self.parameters_after:,}, "
            f"MACs {self.macs_before:,} → {self.macs_after:,}",
            f"largest relative difference {self.compared.relative:.2g} in {self.proof_dtype} over {self.compared} "
            f"({', '.join(row.input for row in self.proof)}), {self.float32.relative:.2g} in the model's own dtype",
        ]
        if self.latency_ms_before is not None and self.latency_ms_after is not None:
            lines.append(
                f"{self.latency_ms_before:.2f} ms → {self.latency_ms_after:.2f} ms in torch eager; channels rounded "
                f"up to a multiple of {self.multiple_of}"
            )
        lines += [f"masked but kept: {count} × {reason}" for reason, count in self.reasons().items()]
        lines += [f"kept whole: {sentence}" for sentence in self.kept_whole]
        return "\n".join([*lines, *self.notes])
