"""From the outputs of torchvision's Faster R-CNN to losses and boxes, by torchvision's own code, image by image.

Which anchors and proposals a loss looks at is drawn at random, as in torchvision, but from the same seed in every call:
a loss is a function of outputs and objects, as attacks and resumed trainings need it.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, relu
from torchvision.models.detection.roi_heads import fastrcnn_loss

from prunekit.detection.boxes import Detections
from prunekit.detection.divergence import bernoulli_divergence
from prunekit.detection.target import Target
from prunekit.detection.torchvision_boxes import (
    Anchored,
    Candidates,
    Losses,
    Outputs,
    by_anchor,
    detections_of,
    labeled,
    with_options,
)
from prunekit.task import Options

STRIDE = 4  # of the finest map
_LEVELS, _POOLED, _WEIGHTS = 5, 4, 8
_SEED = 0


@dataclass(frozen=True)
class FirstStage:
    """The outputs by meaning.

    Attributes:
        features: The maps [N, 256, H, W] that proposals are cut from.
        proposing: Objectness [N, M, 1] and box offsets [N, M, 4] of the anchors.
        weights: Of the layers fc6, fc7, cls_score and bbox_pred, a weight and a bias each.
    """

    features: Sequence[Tensor]
    proposing: Anchored
    weights: Sequence[Tensor]

    @property
    def objectness(self) -> Tensor:
        """The logits [N, M]."""
        return self.proposing.heads["objectness"][..., 0]


class TwoStage:
    """Box code of Faster R-CNN."""

    parts = ("classification", "localization", "objectness", "proposals")

    def __init__(self, net: Any, num_classes: int) -> None:
        """Take torchvision's detector, whose parameters are not used."""
        self.rpn, self.roi_heads = net.rpn, net.roi_heads
        # In training more proposals are kept; the flag says so.
        self.training_rpn, self.rpn.training = copy.copy(net.rpn), False
        self.training_rpn.training = True

    def first_stage(self, outputs: Outputs) -> FirstStage:
        """Return the outputs by meaning."""
        features, maps = outputs[:_POOLED], outputs[_POOLED:-_WEIGHTS]
        levels = {"objectness": maps[:_LEVELS], "offsets": maps[_LEVELS:]}
        proposing = by_anchor(levels, {"objectness": 1, "offsets": 4}, self.rpn.anchor_generator, STRIDE)
        return FirstStage(features, proposing, outputs[-_WEIGHTS:])

    def proposals(self, found: FirstStage, is_training: bool = False) -> list[Tensor]:
        """Return each image's proposals [P, 4] xyxy in input pixels, at most 1000, or 2000 in training."""
        rpn = self.training_rpn if is_training else self.rpn
        anchors, count = found.proposing.anchors, len(found.objectness)
        offsets = found.proposing.heads["offsets"].detach().flatten(0, 1)
        boxes = rpn.box_coder.decode(offsets, [anchors] * count).view(count, -1, 4)
        sizes = [found.proposing.image_size] * count
        kept: list[Tensor] = rpn.filter_proposals(boxes, found.objectness, sizes, found.proposing.level_sizes)[0]
        return kept

    def second_stage(self, found: FirstStage, proposals: Sequence[Tensor], image: slice) -> tuple[Tensor, Tensor]:
        """Return class logits [P, 1+C] and box offsets [P, 4·(1+C)] of all proposals of some images."""
        maps = OrderedDict((str(level), feature[image]) for level, feature in enumerate(found.features))
        sizes = [found.proposing.image_size] * len(proposals)
        x = self.roi_heads.box_roi_pool(maps, list(proposals), sizes).flatten(1)  # [P, 256·7·7]
        w6, b6, w7, b7, w_class, b_class, w_box, b_box = found.weights
        x = relu(linear(relu(linear(x, w6, b6)), w7, b7))
        return linear(x, w_class, b_class), linear(x, w_box, b_box)

    def losses(self, outputs: Outputs, targets: Sequence[Target]) -> Losses:
        """Return torchvision's losses of each image alone."""
        found = self.first_stage(outputs)
        proposals = self.proposals(found, is_training=True)
        rows = []
        for index, target in enumerate(targets):
            with _seeded(found.objectness.device):
                rows.append(self._image_losses(found, index, proposals[index], labeled(target, background=True)))
        return {part: torch.stack([row[part] for row in rows]) for part in rows[0]}

    def detections(self, outputs: Outputs, options: Options) -> list[Detections]:
        """Return torchvision's detections."""
        found = self.first_stage(outputs)
        proposals = self.proposals(found)
        logits, offsets = self.second_stage(found, proposals, slice(None))
        return self.suppressed(found, proposals, logits, offsets, options)

    def suppressed(
        self, found: FirstStage, proposals: list[Tensor], logits: Tensor, offsets: Tensor, options: Options
    ) -> list[Detections]:
        """Return what is left of the proposals' boxes by class after suppression."""
        size, counts, detections = found.proposing.image_size, [len(some) for some in proposals], []
        for boxes, *maps in zip(proposals, torch.split(logits, counts), torch.split(offsets, counts), strict=True):
            scores = None if options.max_candidates is None else maps[0].softmax(dim=-1)[:, 1:]
            heads = with_options(self.roi_heads, options, scores)
            (row,) = zip(*heads.postprocess_detections(*maps, [boxes], [size]), strict=True)
            detections.append(detections_of(dict(zip(("boxes", "scores", "labels"), row, strict=True)), True))
        return detections

    def candidates(self, outputs: Outputs) -> list[Candidates]:
        """Return each proposal's boxes by class [P, C, 4] and scores [P, C]."""
        found = self.first_stage(outputs)
        proposals = self.proposals(found)
        logits, offsets = self.second_stage(found, proposals, slice(None))
        boxes = self.roi_heads.box_coder.decode(offsets, proposals)[:, 1:]
        scores = logits.softmax(dim=-1)[:, 1:]
        counts = [len(some) for some in proposals]
        return [Candidates(*pair) for pair in zip(torch.split(boxes, counts), torch.split(scores, counts), strict=True)]

    def foreground(self, outputs: Outputs) -> Tensor:
        """Return the anchors' objectness, [N, M]."""
        return self.first_stage(outputs).objectness

    def matched_logits(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Return the sums of the first stage's objectness at the anchors that match an object, [N]."""
        found = self.first_stage(outputs)
        wanted = [labeled(target, background=True) for target in targets]
        labels, _ = self.rpn.assign_targets_to_anchors([found.proposing.anchors] * len(wanted), wanted)
        return (found.objectness * (torch.stack(labels) == 1)).sum(dim=1)

    def divergence(self, attacked: Outputs, clean: Outputs) -> Tensor:
        """Return, per image, how far both stages are apart, the second at the clean image's proposals.

        Mean KL of objectness over anchors, plus the mean over proposals of KL of the classes and of p·‖Δ offsets‖² over
        classes with their clean probability p, which is held constant for gradients as the proposals are.
        """
        ours, theirs = self.first_stage(attacked), self.first_stage(clean)
        first = bernoulli_divergence(ours.objectness, theirs.objectness).mean(dim=1)
        proposals = self.proposals(theirs)
        second = []
        for index, boxes in enumerate(proposals):
            image = slice(index, index + 1)
            second.append(_second_divergence(*(self.second_stage(f, [boxes], image) for f in (ours, theirs))))
        return first + torch.stack(second)

    def _image_losses(self, found: FirstStage, index: int, proposals: Tensor, target: dict[str, Tensor]) -> Losses:
        image, rpn, anchors = slice(index, index + 1), self.training_rpn, [found.proposing.anchors]
        labels, boxes = rpn.assign_targets_to_anchors(anchors, [target])
        offsets = found.proposing.heads["offsets"][index]
        objectness, proposing = rpn.compute_loss(
            found.objectness[index], offsets, labels, rpn.box_coder.encode(boxes, anchors)
        )
        chosen, _, labels, wanted = self.roi_heads.select_training_samples([proposals], [target])
        classification, localization = fastrcnn_loss(*self.second_stage(found, chosen, image), labels, wanted)
        return dict(zip(self.parts, (classification, localization, objectness, proposing), strict=True))


def _second_divergence(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> Tensor:
    ours_logs, theirs_logs = ours[0].log_softmax(dim=-1), theirs[0].log_softmax(dim=-1)  # [P, 1+C]
    classes = (theirs_logs.exp() * (theirs_logs - ours_logs)).sum(dim=1)
    moved = (ours[1] - theirs[1]).view(len(classes), -1, 4).square().sum(dim=-1)  # [P, 1+C]
    weighted = (theirs_logs.detach().exp() * moved)[:, 1:].sum(dim=1)
    return (classes + weighted).sum() / max(len(classes), 1)


@contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """Draw from the same seed inside the block, and leave torch's global random state as it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(_SEED)
        yield
