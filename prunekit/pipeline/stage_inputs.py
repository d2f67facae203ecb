"""What stages are given: a detector between stages, images to learn from, a place to work."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from prunekit.detection import Detector
from prunekit.pipeline.objectives import ObjectiveConfig
from prunekit.pipeline.progress import Progress
from prunekit.pipeline.stage_store import Store
from prunekit.pipeline.training_data import TrainingData


@dataclass(frozen=True)
class Artefact:
    """A detector between stages.

    Attributes:
        model: In eval mode; stages copy it before they change it.
        width: Channels relative to darknet's.
        sha256: Of the file that it came from.
        masks: Layer name → mask where it is pruned.
        drops_filters: Whether the masks drop whole filters.
    """

    model: Detector
    width: float
    sha256: str
    masks: dict[str, Tensor] | None = None
    drops_filters: bool = False


@dataclass(frozen=True)
class Training:
    """What a training stage learns from.

    Attributes:
        data: The images.
        sha256: Of the data set.
        objective: A key of `OBJECTIVES`.
        objective_config: Its knobs.
    """

    data: TrainingData
    sha256: str
    objective: str
    objective_config: ObjectiveConfig = field(default_factory=ObjectiveConfig)


@dataclass(frozen=True)
class Bench:
    """Where stages work and who follows them."""

    store: Store
    progress: Progress
