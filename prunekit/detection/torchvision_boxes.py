"""From the maps of torchvision's one-stage detectors to losses and boxes, by torchvision's own code, image by image."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from prunekit.detection.boxes import Detections
from prunekit.detection.divergence import bernoulli_divergence
from prunekit.detection.target import Target
from prunekit.detection.torchvision_networks import NETWORKS, build_torchvision
from prunekit.task import Options

Outputs = Sequence[Tensor]
Losses = dict[str, Tensor]
#: What a map's part of the loss is called, by torchvision's name of the map.
_PARTS = {"cls_logits": "classification", "bbox_regression": "localization", "bbox_ctrness": "centerness"}


class Candidates(NamedTuple):
    """What one image's outputs say: boxes [M, 4] or by class [M, C, 4] xyxy in input pixels, scores [M, C]."""

    boxes: Tensor
    scores: Tensor


class BoxCode(Protocol):
    """What turns a family's outputs into losses and boxes."""

    @property
    def parts(self) -> Sequence[str]:
        """The names of the losses' parts."""
        ...

    def losses(self, outputs: Outputs, targets: Sequence[Target]) -> Losses:
        """Return the parts [N] of the training loss, which is their sum."""
        ...

    def detections(self, outputs: Outputs, options: Options) -> list[Detections]:
        """Return what is found in each image, boxes in input pixels."""
        ...

    def candidates(self, outputs: Outputs) -> list[Candidates]:
        """Return each image's boxes with the scores of all classes, before anything is suppressed."""
        ...

    def foreground(self, outputs: Outputs) -> Tensor:
        """Return the logits of something, whatever it is, being at each anchor, [N, M]."""
        ...

    def matched_logits(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Return the sum, over the anchors that match an object, of the logits of its being there, [N]."""
        ...

    def divergence(self, attacked: Outputs, clean: Outputs) -> Tensor:
        """Return how far outputs for attacked images are from those for clean ones, [N]."""
        ...


@dataclass(frozen=True)
class Anchored:
    """A detector's maps, anchor by anchor.

    Attributes:
        heads: By torchvision's names: class logits [N, M, C], box offsets [N, M, 4], centerness [N, M, 1].
        anchors: [M, 4] xyxy in input pixels; level by level, then rows, columns, shapes.
        level_sizes: How many of the M are of each level.
        image_size: Height and width of the input in pixels.
    """

    heads: Mapping[str, Tensor]
    anchors: Tensor
    level_sizes: list[int]
    image_size: tuple[int, int]

    def image(self, index: int) -> dict[str, Tensor]:
        """Return the heads of one image alone, [1, M, …]."""
        return {name: values[index : index + 1] for name, values in self.heads.items()}


def by_anchor(
    maps: Mapping[str, Sequence[Tensor]], columns: Mapping[str, int], generator: Any, stride: int
) -> Anchored:
    """Lay head maps out anchor by anchor.

    Args:
        maps: By name the levels' maps [N, A·K, H, W], the finest first.
        columns: By name K, the numbers per anchor.
        generator: torchvision's, of anchors.
        stride: Input pixels per cell of the finest level, which divides the input's sides.
    """
    heads = {name: [_by_anchor(level, columns[name]) for level in levels] for name, levels in maps.items()}
    first, name = next(iter(maps.values())), next(iter(maps))
    height, width = (stride * side for side in first[0].shape[-2:])
    images = ImageList(torch.empty(1, 3, height, width, device="meta"), [(height, width)])
    anchors = generator(images, [level.detach() for level in first])[0]
    sizes = [level.shape[1] for level in heads[name]]
    return Anchored({name: torch.cat(levels, 1) for name, levels in heads.items()}, anchors, sizes, (height, width))


def _by_anchor(level: Tensor, columns: int) -> Tensor:
    """Return [N, H·W·A, K] of a map [N, A·K, H, W]."""
    n, _, height, width = level.shape
    return level.view(n, -1, columns, height, width).permute(0, 3, 4, 1, 2).reshape(n, -1, columns)


def labeled(target: Target, background: bool) -> dict[str, Tensor]:
    """Return a target in torchvision's form; where class 0 is the background, labels begin at 1."""
    return {"boxes": target.boxes.float(), "labels": target.labels + int(background)}


def detections_of(found: Mapping[str, Tensor], background: bool) -> Detections:
    """Return torchvision's result for one image."""
    return Detections(found["boxes"], found["scores"], found["labels"] - int(background))


def with_options(module: Any, options: Options, scores: Tensor | None) -> Any:
    """Return a shallow copy of what suppresses boxes, with other thresholds.

    Args:
        module: torchvision's, which has no limit on all candidates of an image.
        options: What it is told; of more candidates than they allow, it sees the best ones, without those whose score
            the first that is left out has, too.
        scores: Of all candidates of the one image that it will see; None where the options set no limit.
    """
    limited = copy.copy(module)
    limited.score_thresh, limited.nms_thresh = options.score_threshold, options.iou_threshold
    limited.detections_per_img = options.max_detections
    if scores is not None and options.max_candidates is not None and scores.numel() > options.max_candidates:
        first_left_out = scores.flatten().topk(options.max_candidates + 1).values[-1]
        limited.score_thresh = max(options.score_threshold, float(first_left_out))
    return limited


class OneStage:
    """Box code of RetinaNet, whose classes are independent: K logits a class, by sigmoids."""

    names: tuple[str, ...] = ("cls_logits", "bbox_regression")
    stride = 8
    background = False

    @property
    def parts(self) -> list[str]:
        """The names of the losses' parts, a map each."""
        return [_PARTS[name] for name in self.names]

    def __init__(self, net: Any, num_classes: int) -> None:
        """Take torchvision's detector, whose parameters are not used."""
        self.net = net
        logits = num_classes + self.background
        self.columns = dict(zip(self.names, (logits, 4, 1), strict=False))

    def anchored(self, outputs: Outputs) -> Anchored:
        """Return the maps anchor by anchor."""
        levels = len(outputs) // len(self.names)
        maps = {name: outputs[i * levels : (i + 1) * levels] for i, name in enumerate(self.names)}
        return by_anchor(maps, self.columns, self.net.anchor_generator, self.stride)

    def losses(self, outputs: Outputs, targets: Sequence[Target]) -> Losses:
        """Return torchvision's losses of each image alone."""
        found = self.anchored(outputs)
        rows = [
            self._image_losses(labeled(target, self.background), found.image(index), found)
            for index, target in enumerate(targets)
        ]
        named = zip(self.parts, ("classification", "bbox_regression", "bbox_ctrness"), strict=False)
        return {part: torch.stack([row[name] for row in rows]) for part, name in named}

    def detections(self, outputs: Outputs, options: Options) -> list[Detections]:
        """Return torchvision's detections."""
        found = self.anchored(outputs)
        if options.max_candidates is None:
            rows = self._postprocessed(with_options(self.net, options, None), found, len(outputs[0]))
            return [detections_of(row, self.background) for row in rows]
        rows = []
        for index, scores in enumerate(self.scores(found)):
            alone = replace(found, heads=found.image(index))
            rows += self._postprocessed(with_options(self.net, options, scores), alone, 1)
        return [detections_of(row, self.background) for row in rows]

    def candidates(self, outputs: Outputs) -> list[Candidates]:
        """Return the decoded boxes [M, 4] and scores [M, C]."""
        found = self.anchored(outputs)
        scores, offsets = self.scores(found), found.heads["bbox_regression"]
        return [Candidates(self._decoded(o, found.anchors), s) for o, s in zip(offsets, scores, strict=True)]

    def foreground(self, outputs: Outputs) -> Tensor:
        """Return the likeliest class's logit, [N, M]."""
        return self.anchored(outputs).heads["cls_logits"].amax(dim=-1)

    def matched_logits(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """Return the sums of the true classes' logits, [N]."""
        found = self.anchored(outputs)
        sums = []
        for index, target in enumerate(targets):
            match = self.matches(labeled(target, self.background), found)  # [M]
            places = (match >= 0).nonzero()[:, 0]
            labels = target.labels[match[places]]
            sums.append(self.logits_of(found, index, places, labels).sum())
        return torch.stack(sums)

    def divergence(self, attacked: Outputs, clean: Outputs) -> Tensor:
        """Return, per image, (Σ KL of the classes + Σ p·‖Δ offsets‖²) / max(Σ p, 1) over anchors.

        p is the clean probability of an object at an anchor, held constant for gradients: where nothing is, offsets
        have no meaning. Losses are divided by the number of matching anchors likewise.
        """
        ours, theirs = self.anchored(attacked), self.anchored(clean)
        weight = self.scores(theirs).detach().amax(dim=-1)  # [N, M]
        moved = (ours.heads["bbox_regression"] - theirs.heads["bbox_regression"]).square().sum(dim=-1)
        total = (self._class_divergence(ours, theirs) + weight * moved).sum(dim=1)
        return total / weight.sum(dim=1).clamp(min=1)

    def scores(self, found: Anchored) -> Tensor:
        """Return the classes' scores [N, M, C]."""
        return found.heads["cls_logits"].sigmoid()

    def logits_of(self, found: Anchored, index: int, places: Tensor, labels: Tensor) -> Tensor:
        """Return how sure an image's anchors at `places` [P] are of `labels` [P], as logits [P]."""
        return found.heads["cls_logits"][index, places, labels]

    def matches(self, target: Mapping[str, Tensor], found: Anchored) -> Tensor:
        """Return the object that each anchor is to find, int64 [M]; below 0 for none."""
        if len(target["boxes"]) == 0:
            return torch.full((len(found.anchors),), -1, device=found.anchors.device)
        matched: Tensor = self.net.proposal_matcher(box_iou(target["boxes"], found.anchors))
        return matched

    def _class_divergence(self, ours: Anchored, theirs: Anchored) -> Tensor:
        """Return the Bernoulli variables' KL(clean ‖ attacked), summed over classes, [N, M]."""
        return bernoulli_divergence(ours.heads["cls_logits"], theirs.heads["cls_logits"]).sum(dim=-1)

    def _image_losses(self, target: dict[str, Tensor], heads: dict[str, Tensor], found: Anchored) -> Losses:
        losses: Losses = self.net.compute_loss([target], heads, [found.anchors])
        return losses

    def _postprocessed(self, net: Any, found: Anchored, count: int) -> Any:
        heads = {name: torch.split(values, found.level_sizes, dim=1) for name, values in found.heads.items()}
        anchors = [torch.split(found.anchors, found.level_sizes)] * count
        return net.postprocess_detections(heads, anchors, [found.image_size] * count)

    def _decoded(self, offsets: Tensor, anchors: Tensor) -> Tensor:
        boxes: Tensor = self.net.box_coder.decode_single(offsets, anchors)
        return boxes


class FcosBoxes(OneStage):
    """Box code of FCOS, whose anchors are points with a centerness."""

    names = ("cls_logits", "bbox_regression", "bbox_ctrness")

    def scores(self, found: Anchored) -> Tensor:
        """Return the geometric means of class probabilities and centerness, [N, M, C]."""
        # By logarithms: the gradient of a square root is infinite at 0.
        logs = logsigmoid(found.heads["cls_logits"]) + logsigmoid(found.heads["bbox_ctrness"])
        return (logs / 2).exp()

    def logits_of(self, found: Anchored, index: int, places: Tensor, labels: Tensor) -> Tensor:
        """Return the logits of the class and of centerness, summed, [P]."""
        return super().logits_of(found, index, places, labels) + found.heads["bbox_ctrness"][index, places, 0]

    def matches(self, target: Mapping[str, Tensor], found: Anchored) -> Tensor:
        """Return the object that each point is to find, as torchvision's loss does, int64 [M]; -1 for none."""
        head = SimpleNamespace(compute_loss=lambda targets, outputs, anchors, matched: matched)
        rule = SimpleNamespace(center_sampling_radius=self.net.center_sampling_radius, head=head)
        matched: Tensor = type(self.net).compute_loss(rule, [target], {}, [found.anchors], found.level_sizes)[0]
        return matched

    def _image_losses(self, target: dict[str, Tensor], heads: dict[str, Tensor], found: Anchored) -> Losses:
        losses: Losses = self.net.compute_loss([target], heads, [found.anchors], found.level_sizes)
        return losses

    def _decoded(self, offsets: Tensor, anchors: Tensor) -> Tensor:
        boxes: Tensor = self.net.box_coder.decode(offsets, anchors)
        return boxes


class SsdBoxes(OneStage):
    """Box code of SSD and SSDlite, whose classes exclude each other: logits of the background and of each class."""

    background = True

    def foreground(self, outputs: Outputs) -> Tensor:
        """Return the logits of any class against the background, [N, M]."""
        logits = self.anchored(outputs).heads["cls_logits"]
        return logits[..., 1:].logsumexp(dim=-1) - logits[..., 0]

    def scores(self, found: Anchored) -> Tensor:
        """Return the classes' probabilities [N, M, C]."""
        return found.heads["cls_logits"].softmax(dim=-1)[..., 1:]

    def logits_of(self, found: Anchored, index: int, places: Tensor, labels: Tensor) -> Tensor:
        """Return the classes' logits less the background's, [P]."""
        logits = found.heads["cls_logits"][index]
        return logits[places, labels + 1] - logits[places, 0]

    def _class_divergence(self, ours: Anchored, theirs: Anchored) -> Tensor:
        """Return KL(clean ‖ attacked), [N, M]."""
        ours_logs, theirs_logs = (log_softmax(found.heads["cls_logits"], dim=-1) for found in (ours, theirs))
        return (theirs_logs.exp() * (theirs_logs - ours_logs)).sum(dim=-1)

    def _image_losses(self, target: dict[str, Tensor], heads: dict[str, Tensor], found: Anchored) -> Losses:
        losses: Losses = self.net.compute_loss([target], heads, [found.anchors], [self.matches(target, found)])
        return losses

    def _postprocessed(self, net: Any, found: Anchored, count: int) -> Any:
        return net.postprocess_detections(found.heads, [found.anchors] * count, [found.image_size] * count)


class SsdliteBoxes(SsdBoxes):
    """Box code of SSDlite, whose finest map has stride 16."""

    stride = 16


@cache
def box_code(name: str, num_classes: int) -> BoxCode:
    """Return the box code of a family for some number of classes; torch's global random state stays as it is."""
    from prunekit.detection.torchvision_two_stage import TwoStage

    kinds: dict[str, Any] = {
        "fasterrcnn-resnet50-fpn": TwoStage,
        "fcos-resnet50-fpn": FcosBoxes,
        "ssd300-vgg16": SsdBoxes,
        "ssdlite320-mobilenet-v3-large": SsdliteBoxes,
    }
    assert name in NETWORKS
    with torch.random.fork_rng([]):
        net = build_torchvision(name, num_classes)
    code: BoxCode = kinds.get(name, OneStage)(net.to("meta"), num_classes)  # anchors are no parameters and stay
    return code
