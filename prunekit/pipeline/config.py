"""What a run is asked to do: every choice, its default and its meaning, checked before any work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from prunekit.attacks import PRESETS
from prunekit.detection import MODELS
from prunekit.errors import InputError
from prunekit.prune import SCORES

# Results do not depend on where files lie (their content is compared), nor on which process reads them; each ratio is
# a unit of its own.
_NO_PART_OF_THE_IDENTITY = {"weights", "data", "out", "ratios", "workers"}


class RunConfig(BaseModel):
    """The main job: prune `model` at each ratio, evaluate it clean and attacked, time what is deployed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description=f"detector: {', '.join(MODELS)}")
    weights: Path = Field(description="darknet .weights file")
    data: Path = Field(description="folder in COCO's layout, or the annotations' JSON file")
    out: Path = Field(description="run folder")
    ratios: tuple[float, ...] = Field(
        (0, 25, 50, 75, 90, 95), min_length=1, description="pruning ratios in percent, 0 <= ratio < 100"
    )
    scores: str = Field("scaled", description=f"what ranks the weights: {', '.join(SCORES)}")
    structure: Literal["unstructured"] = Field("unstructured", description="what is dropped: single weights")
    attack: str = Field("paper", description=f"white-box attack: {', '.join(PRESETS)}, or none")
    width: float = Field(1.0, gt=0, le=4, description="the detector's channels relative to darknet's")
    image_size: int = Field(416, ge=32, le=4096, multiple_of=32, description="side of the letterboxed input in pixels")
    greyscale: bool = Field(False, description="evaluate on grey values (Rec. 601) instead of colours")
    score_threshold: float = Field(0.001, ge=0, lt=1, description="detections score above this")
    iou_threshold: float = Field(0.45, gt=0, le=1, description="non-maximum suppression's overlap")
    max_detections: int = Field(100, ge=1, description="kept per image; COCO's AP counts at most 100")
    batch_size: int = Field(8, ge=1, description="images at once in evaluation and attack")
    workers: int = Field(0, ge=0, description="processes that read images ahead (0: none beside this one)")
    limit: int | None = Field(None, ge=1, description="only the first so many images (all if not given)")
    threads: int | None = Field(None, ge=1, description="threads of torch's pool (torch's own choice if not given)")
    latency_runs: int = Field(30, ge=3, description="timed runs of each of control and artefact")
    seed: int = Field(0, ge=0, description="seed of the attack's random starts")

    @field_validator("ratios")
    @classmethod
    def _sorted_percentages(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        for ratio in ratios:
            if not 0 <= ratio < 100:
                raise ValueError(f"each ratio must be at least 0 and below 100 percent, got {ratio:g}")
        return tuple(sorted(set(ratios)))

    @field_validator("model", "scores", "attack")
    @classmethod
    def _known_name(cls, value: str, info: Any) -> str:
        known = {"model": [*MODELS], "scores": [*SCORES], "attack": [*PRESETS, "none"]}[info.field_name]
        if value not in known:
            raise ValueError(f"must be one of {', '.join(known)}, got {value!r}")
        return value

    def identity(self) -> dict[str, Any]:
        """Return the fields that every finished ratio of a run folder must share."""
        return self.model_dump(mode="json", exclude=_NO_PART_OF_THE_IDENTITY)


def make_config(**choices: Any) -> RunConfig:
    """Build a RunConfig; whatever is wrong becomes an InputError of one sentence."""
    try:
        return RunConfig(**choices)
    except ValidationError as error:
        raise InputError(_first_problem(error)) from None


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    field = "--" + str(problem["loc"][0]).replace("_", "-")
    message = problem["msg"].removeprefix("Value error, ")
    found = "" if problem["type"] == "value_error" else f", got {problem['input']!r}"
    return f"{field}: {message[0].lower()}{message[1:]}{found}."


def parse_ratios(text: str) -> tuple[float, ...]:
    """Read "0,25,50" as pruning ratios in percent."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--ratios: expected numbers separated by commas, such as 0,50,90, got {text!r}.") from None


def ratio_name(ratio: float) -> str:
    """Return the stem of a ratio's files: ratio_50, ratio_12.5."""
    return f"ratio_{ratio:g}"


def digest(parts: Iterable[Any]) -> str:
    """Return the SHA-256 of JSON-able values, as hexadecimal digits."""
    return hashlib.sha256(json.dumps(list(parts), sort_keys=True).encode()).hexdigest()
