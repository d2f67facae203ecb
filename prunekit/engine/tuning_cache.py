"""Choices of earlier runs, on disk: keyed by processor, instruction set, threads, shape and density."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from prunekit.engine.filters import ConvChoice
from prunekit.measurements import MeasurementCache
from prunekit.ops.native import native_status
from prunekit.processor import processor


@dataclass(frozen=True)
class TuningKey:
    """What a choice depends on beside the processor.

    Attributes:
        weight: [K, C / groups, R, S].
        stride, padding, dilation, groups: As in nn.Conv2d.
        size: [H, W] of the input.
        pitches: Of the input's and the output's rows.
        density: To two digits.
        weight_bits: Of a kept weight, 32 or 16.
        threads, lanes: Of the engine.
        work: Multiply-adds of kept weights; for order, no part of the key.
    """

    weight: tuple[int, ...]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    size: tuple[int, int]
    pitches: tuple[int, int]
    density: float
    weight_bits: int
    threads: int
    lanes: int
    work: int = field(compare=False)

    def __str__(self) -> str:
        parts = asdict(self)
        del parts["work"]
        machine = {"processor": _machine(), "instruction_set": native_status().instruction_set}
        return json.dumps({**machine, **parts}, sort_keys=True)


@cache
def _machine() -> str:
    return processor().name


class TuningCache(MeasurementCache[TuningKey, ConvChoice]):
    """How each convolution is cut."""

    NAME, FILE = "tuning cache", "tuning.json"

    def encode(self, value: ConvChoice) -> list[int]:  # noqa: D102
        return [value.rows, value.tile_vectors, value.channel_block, value.row_parts, value.repeats]

    def decode(self, written: Any) -> ConvChoice:  # noqa: D102
        if not isinstance(written, list) or len(written) != 5 or not ConvChoice(*written).is_sound:
            raise ValueError(f"{written!r} is no choice")
        return ConvChoice(*written)
