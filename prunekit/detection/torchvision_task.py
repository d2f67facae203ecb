"""torchvision's detectors as the study's door asks for them: their own losses and boxes, all else as for YOLO."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from prunekit.attacks import AttackLosses
from prunekit.detection.attack_losses import FOUND_IOU, margin_of_best
from prunekit.detection.boxes import Detections, intersection_and_union
from prunekit.detection.coco import CocoDataset
from prunekit.detection.target import Target
from prunekit.detection.task import DetectionTask
from prunekit.errors import InputError
from prunekit.extras import MissingExtraError, check_extra
from prunekit.state_dicts import State
from prunekit.task import Options

if TYPE_CHECKING:
    from prunekit.detection.torchvision_boxes import BoxCode, Candidates

Outputs = Sequence[Tensor]
DEFAULT_CLASSES = 80
_SSD_SIZE, _PYRAMID_SIZE = 320, 800  # pixels: the multiple of 32 next to SSD300's 300; torchvision's shorter side
_LEAST_SIZES = {"ssd300-vgg16": 288}  # pixels: its last two convolutions take off a pixel on each side


@dataclass(frozen=True)
class TorchvisionTask(DetectionTask):
    """A `prunekit.task.Task` of torchvision's detectors: COCO data, torchvision's losses, average precision.

    Outputs are a network's of `prunekit.detection.torchvision_networks`. Needs the extra "torchvision".
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            check_extra("torchvision", f"the model {self.spec.name}")
        except MissingExtraError as error:
            raise InputError(str(error)) from None
        size = _SSD_SIZE if self.spec.name.startswith("ssd") else _PYRAMID_SIZE
        object.__setattr__(self, "image_size", size)

    @cached_property
    def code(self) -> BoxCode:
        """What makes losses and boxes of outputs."""
        from prunekit.detection.torchvision_boxes import box_code

        return box_code(self.spec.name, self.spec.arguments.get("num_classes", DEFAULT_CLASSES))

    def open_data(self, path: Path, image_size: int | None, grayscale: bool, limit: int | None) -> CocoDataset:
        """Open a data set in COCO's layout, at the family's size if none is given."""
        size, least = image_size or self.image_size, _LEAST_SIZES.get(self.spec.name, 0)
        if size < least:
            raise InputError(f"--image-size: expected at least {least} for {self.spec.name}, got {size}.")
        return super().open_data(path, size, grayscale, limit)

    def read_state(self, path: Path) -> State:
        """Read one of torchvision's state dicts, also one that a version before 0.13 wrote."""
        return {self._todays_name(name): tensor for name, tensor in super().read_state(path).items()}

    def _todays_name(self, name: str) -> str:
        """Return what torchvision calls a tensor since it makes convolutions with what follows them one module."""
        name = re.sub(r"(fpn\.\w+_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", name)
        name = re.sub(r"^(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2", name)
        former = re.match(r"(head\.\w+_head\.conv)\.(\d+)\.(weight|bias)$", name)
        if former is None or self.spec.name != "retinanet-resnet50-fpn":  # FCOS names its towers so to this day
            return name
        return f"{former[1]}.{int(former[2]) // 2}.0.{former[3]}"  # every second one was a ReLU

    def loss(self, model: nn.Module, x: Tensor, targets: Sequence[Target]) -> Tensor:
        """Return the training losses [N]."""
        return self.total(model(x), targets)

    def total(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Return the sums of the losses' parts, [N]."""
        return torch.stack([*self.code.losses(outputs, targets).values()]).sum(dim=0)

    def attack_losses(self, targets: Sequence[Target]) -> AttackLosses:
        """Return the total, its parts, and what loses or invents objects."""

        def total(outputs: Outputs) -> Tensor:
            return self.total(outputs, targets)

        def part(name: str) -> Callable[[Outputs], Tensor]:
            return lambda outputs: self.code.losses(outputs, targets)[name]

        components = {"total": total, **{name: part(name) for name in self.code.parts}}
        components |= {"vanish": self._vanish, "fabricate": self._fabricate}
        return AttackLosses(
            total, lambda outputs: self._margin(outputs, targets), components, badness=total, smooth=self._vanish
        )

    def divergence(self, attacked: Outputs, clean: Outputs) -> Tensor:
        """Return how far outputs for attacked images are from those for clean ones, [N]."""
        return self.code.divergence(attacked, clean)

    def attribution(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Return how sure the detector, of two stages the first, is of the objects that are there, [N]."""
        return self.code.matched_logits(outputs, targets)

    def detections(self, outputs: Outputs, options: Options) -> list[Detections]:
        """Return what torchvision's code finds in each image, boxes in input pixels."""
        return self.code.detections(outputs, options)

    def candidate_scores(self, outputs: Outputs) -> list[Tensor]:
        """Return each image's scores by box and class, [M, C], before torchvision's own limits."""
        return [found.scores for found in self.code.candidates(outputs)]

    def postprocessing(self, outputs: Outputs, options: Options) -> dict[str, Callable[[], object]]:
        """Return the one step from outputs to detections, which in Faster R-CNN holds the second stage."""
        return {"boxes": lambda: self.detections(outputs, options)}

    def _vanish(self, outputs: Outputs) -> Tensor:
        """Return minus the mean loss towards nothing at any anchor, [N]."""
        return -softplus(self.code.foreground(outputs)).mean(dim=1)

    def _fabricate(self, outputs: Outputs) -> Tensor:
        """Return minus the mean loss towards something at every anchor, [N]."""
        return -softplus(-self.code.foreground(outputs)).mean(dim=1)

    def _margin(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Return the margins [N] of `margin_of_best`."""
        found = self.code.candidates(outputs)
        best = [_best_scores(candidates, target) for candidates, target in zip(found, targets, strict=True)]
        return margin_of_best(torch.cat(best), torch.tensor([len(target.boxes) for target in targets]))


def _best_scores(found: Candidates, target: Target) -> Tensor:
    """Return, for each object, the best score for its class of the boxes that cover it, [K]; 0 where none does."""
    if len(target.boxes) == 0:
        return found.scores.new_zeros(0)
    boxes = found.boxes[None] if found.boxes.dim() == 2 else found.boxes[:, target.labels].transpose(0, 1)
    with torch.no_grad():
        intersection, union = intersection_and_union(boxes, target.boxes[:, None].to(boxes))  # [K, M]
        overlaps = intersection >= FOUND_IOU * union
    return torch.where(overlaps, found.scores[:, target.labels].T, 0.0).amax(dim=1)
