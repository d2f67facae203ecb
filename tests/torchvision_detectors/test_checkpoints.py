"""State dicts as torchvision's checkpoints are: 91 classes, frozen normalizations, names of former versions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prunekit.detection.torchvision_families import FAMILIES
from prunekit.pipeline.checkpoint import open_checkpoint
from prunekit.task import ModelSpec, task_of
from tests.support.torchvision_nets import WITH_BACKGROUND

pytest.importorskip("torchvision", reason="needs torchvision: pip install 'prunekit[torchvision]'")
from prunekit.detection.torchvision_networks import build_torchvision

CLASSES = 91
HEADS = {
    "fasterrcnn-resnet50-fpn": {"roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"},
    "retinanet-resnet50-fpn": {"head.classification_head.cls_logits"},
    "fcos-resnet50-fpn": {"head.classification_head.cls_logits"},
    "ssd300-vgg16": {f"head.classification_head.module_list.{level}" for level in range(6)},
    "ssdlite320-mobilenet-v3-large": {f"head.classification_head.module_list.{level}.1" for level in range(6)},
}


def state_of_former_versions(name: str) -> dict[str, Tensor]:
    """Return random weights of 91 classes: from before 0.13, without what frozen normalizations do not count."""
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        net = build_torchvision(name, CLASSES - int(name in WITH_BACKGROUND))
    return {former(key, name): tensor for key, tensor in net.state_dict().items() if "num_batches_tracked" not in key}


def former(key: str, name: str) -> str:
    key = re.sub(r"(inner|layer)_blocks\.(\d)\.0\.", r"\1_blocks.\2.", key)
    key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
    if name.startswith("retinanet"):
        return re.sub(r"_head\.conv\.(\d)\.0\.", lambda found: f"_head.conv.{2 * int(found[1])}.", key)
    return key


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_of_91_classes_gives_all_but_its_heads(name: str, tmp_path: Path) -> None:
    state, path = state_of_former_versions(name), tmp_path / "checkpoint.pth"
    torch.save({"model": state, "epoch": 1}, path)  # as torchvision's references do
    start = open_checkpoint(path, task_of(ModelSpec(name, {"num_classes": 3})), heads_seed=0)
    assert start.transfer is not None
    assert set(start.transfer.made_anew) == HEADS[name]
    own, taken = start.model.state_dict(), set(start.transfer.taken)
    for key, tensor in own.items():
        layer, _, kind = key.rpartition(".")
        if layer in taken and kind != "num_batches_tracked":
            assert torch.equal(tensor, state[former(key, name)]), key

    task = task_of(ModelSpec(name)).for_weights(path)
    assert task.spec.arguments == {"num_classes": CLASSES - int(name in WITH_BACKGROUND)}
    whole = open_checkpoint(path, task).model.state_dict()
    for layer in HEADS[name]:
        assert torch.equal(whole[f"{layer}.weight"], state[f"{layer}.weight"])
