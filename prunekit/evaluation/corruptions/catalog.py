"""The common corruptions of images and their five severities.

The fifteen of the benchmark and the four for validation are those of Hendrycks and Dietterich (2019), in the version
for images of any size by Michaelis et al. (2019). Parameters are theirs for large images at every size; CIFAR-10-C has
others. What is random is drawn by a generator of the image's own: nothing depends on which images went before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from prunekit.errors import InputError
from prunekit.evaluation.corruptions.blur import defocus_blur, gaussian_blur, glass_blur, motion_blur, zoom_blur
from prunekit.evaluation.corruptions.digital import contrast, elastic_transform, jpeg_compression, pixelate, saturate
from prunekit.evaluation.corruptions.filters import Floats, whole_numbers
from prunekit.evaluation.corruptions.frost import frost
from prunekit.evaluation.corruptions.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from prunekit.evaluation.corruptions.spatter import spatter
from prunekit.evaluation.corruptions.weather import brightness, fog, snow
from prunekit.kept_images import Pixels
from prunekit.registry import register

SEVERITIES = (1, 2, 3, 4, 5)
#: Part of what finished work is known by, for when a corruption comes to compute something else of its parameters.
VERSION = 1


@dataclass(frozen=True)
class Corruption:
    """A corruption at its severities.

    Attributes:
        apply: Of an image float64 [H, W, 3] in [0, 1], a generator if it is random, and a severity's parameters; what
            it returns is clipped.
        parameters: Of severity 1 to 5.
        is_random: Whether the generator is asked for.
    """

    apply: Callable[..., Floats]
    parameters: tuple[tuple[Any, ...], ...]
    is_random: bool


def _of(apply: Callable[..., Floats], *parameters: Any, is_random: bool = False) -> Corruption:
    return Corruption(apply, tuple(one if isinstance(one, tuple) else (one,) for one in parameters), is_random)


def _random(apply: Callable[..., Floats], *parameters: Any) -> Corruption:
    return _of(apply, *parameters, is_random=True)


BENCHMARK: dict[str, Corruption] = {
    "gaussian_noise": _random(gaussian_noise, 0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": _random(shot_noise, 60, 25, 12, 5, 3),
    "impulse_noise": _random(impulse_noise, 0.03, 0.06, 0.09, 0.17, 0.27),
    "defocus_blur": _of(defocus_blur, (3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "glass_blur": _random(glass_blur, (0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "motion_blur": _random(motion_blur, (10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "zoom_blur": _of(zoom_blur, (0.01, 1.11), (0.01, 1.16), (0.02, 1.21), (0.02, 1.26), (0.03, 1.31)),
    "snow": _random(
        snow,
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "frost": _random(frost, (1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    "fog": _random(fog, (1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    "brightness": _of(brightness, 0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": _of(contrast, 0.4, 0.3, 0.2, 0.1, 0.05),
    "elastic_transform": _random(elastic_transform, 12.5, 16.25, 21.25, 25, 30),
    "pixelate": _of(pixelate, 0.6, 0.5, 0.4, 0.3, 0.25),
    "jpeg_compression": _of(jpeg_compression, 25, 18, 15, 10, 7),
}
VALIDATION: dict[str, Corruption] = {
    "speckle_noise": _random(speckle_noise, 0.15, 0.2, 0.35, 0.45, 0.6),
    "gaussian_blur": _of(gaussian_blur, 1, 2, 3, 4, 6),
    "spatter": _random(
        spatter,
        (0.65, 0.3, 4, 0.69, 0.6, False),
        (0.65, 0.3, 3, 0.68, 0.6, False),
        (0.65, 0.3, 2, 0.68, 0.5, False),
        (0.65, 0.3, 1, 0.65, 1.5, True),
        (0.67, 0.4, 1, 0.65, 1.5, True),
    ),
    "saturate": _of(saturate, (0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
}
CORRUPTIONS = BENCHMARK | VALIDATION
_GROUPS = {"benchmark": BENCHMARK, "validation": VALIDATION, "all": CORRUPTIONS}


def register_corruption(name: str, apply: Callable[..., Floats], parameters: Sequence[Any], is_random: bool) -> None:
    """Add a corruption of one's own, which "all" includes and the benchmark's means do not.

    Args:
        name: What --corruptions calls it, and part of file names.
        apply: As in `Corruption`.
        parameters: What `apply` gets last at severities 1 to 5: a value or a tuple each, JSON-able.
        is_random: As in `Corruption`.

    Raises:
        InputError: When the name is taken or no word, or there are not five severities.
    """
    if not name.isidentifier() or name in _GROUPS:
        raise InputError(f"Expected a word of letters, digits and underscores for the corruption, got {name!r}.")
    if len(parameters) != len(SEVERITIES):
        raise InputError(f"Expected parameters of five severities for the corruption {name}, got {len(parameters)}.")
    register(CORRUPTIONS, "corruption", name, _of(apply, *parameters, is_random=is_random))


class Cell(NamedTuple):
    """A corruption at one severity."""

    corruption: str
    severity: int

    @property
    def name(self) -> str:
        """A name for folders and messages: fog-3."""
        return f"{self.corruption}-{self.severity}"

    @property
    def identity(self) -> dict[str, Any]:
        """What the corruption computes depends on, JSON-able."""
        parameters = CORRUPTIONS[self.corruption].parameters[self.severity - 1]
        return {**self._asdict(), "parameters": list(parameters), "version": VERSION}


@dataclass(frozen=True)
class CorruptPixels:
    """Corrupts images where they are decoded: a `prunekit.task_data.PixelChange`.

    Attributes:
        cell: The corruption and its severity.
        seed: Of what is random, with the cell and the image's id.
    """

    cell: Cell
    seed: int = 0

    def __call__(self, pixels: Pixels, image_id: int) -> Pixels:
        """Return a corrupted copy of an image."""
        return corrupt(pixels, *self.cell, image_id=image_id, seed=self.seed)


def corrupt(pixels: Pixels, corruption: str, severity: int, image_id: int | str = 0, seed: int = 0) -> Pixels:
    """Return a corrupted copy of an image.

    Args:
        pixels: RGB, uint8 [H, W, 3], of any size.
        corruption: A name in `CORRUPTIONS`.
        severity: 1 to 5.
        image_id: Images of other ids get other noise.
        seed: Likewise.

    Raises:
        InputError: When the image is of another kind, or there is no such corruption or severity.
    """
    _require_cell(corruption, severity)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise InputError(f"Expected an RGB image, uint8 [H, W, 3], got {pixels.dtype} {list(pixels.shape)}.")
    chosen = CORRUPTIONS[corruption]
    draws = [_generator(seed, corruption, severity, image_id)] if chosen.is_random else []
    corrupted = chosen.apply(pixels / 255, *draws, *chosen.parameters[severity - 1])
    return as_bytes(corrupted)


def as_bytes(x: Floats) -> Pixels:
    """Return pixels in [0, 1], which are clipped, as bytes."""
    return whole_numbers(np.clip(x, 0, 1) * 255).astype(np.uint8)


def parse_corruptions(text: str) -> tuple[Cell, ...]:
    """Read which corruptions are meant, such as "benchmark", "all" or "fog,snow:3": each once, in this order.

    Raises:
        InputError: When a name or a severity is unknown, or there is none.
    """
    cells: dict[Cell, None] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, colon, severity = part.partition(":")
        severities = (_whole_number(severity),) if colon else SEVERITIES
        cells |= dict.fromkeys(_cell(one, level) for one in _GROUPS.get(name, {name: None}) for level in severities)
    if not cells:
        raise InputError(f"Expected names of corruptions, or benchmark, got {text!r}")
    return tuple(cells)


def _cell(corruption: str, severity: int) -> Cell:
    _require_cell(corruption, severity)
    return Cell(corruption, severity)


def _require_cell(corruption: str, severity: int) -> None:
    if corruption not in CORRUPTIONS:
        names = ", ".join([*_GROUPS, *CORRUPTIONS])
        raise InputError(f"Expected corruptions among {names}, got {corruption!r}")
    if severity not in SEVERITIES:
        raise InputError(f"Expected a severity from 1 to 5 for {corruption}, got {severity!r}")


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"Expected a severity from 1 to 5 behind the colon, got {text!r}") from None


def _generator(seed: int, corruption: str, severity: int, image_id: int | str) -> np.random.Generator:
    """Return the generator of one image; NumPy's streams are the same on every platform."""
    name = f"{seed}/{corruption}/{severity}/{image_id}"
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little"))
