"""Every layer of the detectors against darknet's own library."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from prunekit.detection import (
    MODELS,
    Detector,
    Letterbox,
    load_darknet_weights,
    save_darknet_weights,
)
from prunekit.detection.blocks import ConvBlock, Residual
from tests.support import ROOT
from tests.support.external_files import coco128, darknet_cfg, darknet_library, official_tiny_weights

# Root mean square of the difference over that of darknet's output; 7e-6 was measured.
RELATIVE_TOLERANCE = 1e-4
KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "convolutional": (ConvBlock, nn.Conv2d),
    "maxpool": (nn.MaxPool2d,),
    "shortcut": (Residual,),
    "upsample": (nn.Upsample,),
}


def test_official_tiny_weights_give_darknets_layers(tmp_path: Path) -> None:
    net = MODELS["yolov3-tiny"]().eval()
    weights = official_tiny_weights()
    load_darknet_weights(net, weights)
    file = coco128() / "train2017" / "000000000009.jpg"
    with Image.open(file) as image:
        x = Letterbox.fit(image.width, image.height, size=416).apply(image.convert("RGB"))
    assert_layers_agree(net, weights, x[None], tmp_path)


@pytest.mark.parametrize("name", ["yolov3", "yolov3-spp"])
def test_random_weights_give_darknets_layers(name: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    net = MODELS[name]().eval()
    randomize(net, generator)
    weights = tmp_path / "random.weights"
    save_darknet_weights(net, weights)
    # Wider than high, so that exchanged sides would show.
    assert_layers_agree(net, weights, torch.rand(1, 3, 96, 160, generator=generator), tmp_path)


def randomize(net: Detector, generator: torch.Generator) -> None:
    """Give every tensor of the weights file its own values, with variances near 1."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.weight, 0.4, 0.8, generator=generator)
            nn.init.normal_(module.bias, 0, 0.2, generator=generator)
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.8, 1.2, generator=generator)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=0.1, generator=generator)


def assert_layers_agree(net: Detector, weights: Path, x: Tensor, folder: Path) -> None:
    cfg = folder / "net.cfg"
    cfg.write_text(cfg_for_input(darknet_cfg(net.name).read_text(), width=x.shape[3], height=x.shape[2]))
    sections = parse_sections(cfg.read_text())
    expected = run_darknet(cfg, weights, x, folder)
    found = layers_of(net, x, sections)
    assert len(expected) == len(found) == len(sections)
    errors = {}
    for index, ((kind, _), theirs, ours) in enumerate(zip(sections, expected, found, strict=True)):
        assert ours.shape == theirs.shape, (index, kind)
        errors[f"layer {index}, {kind}"] = float((ours - theirs).norm() / theirs.norm())
    assert max(errors.values()) < RELATIVE_TOLERANCE, errors


def cfg_for_input(cfg: str, width: int, height: int) -> str:
    """Set the input's size, and one image at a time."""
    for key, value in (("batch", 1), ("subdivisions", 1), ("width", width), ("height", height)):
        cfg = re.sub(rf"^#? *{key} *=.*$", f"{key}={value}", cfg, flags=re.MULTILINE)
    return cfg


def parse_sections(cfg: str) -> list[tuple[str, dict[str, str]]]:
    """Return the layers of a cfg: kind and options of each, without [net]."""
    sections: list[tuple[str, dict[str, str]]] = []
    for line in cfg.splitlines():
        if line.startswith("["):
            sections.append((line.strip("[]"), {}))
        elif "=" in line and not line.startswith("#"):
            key, value = line.split("=")
            sections[-1][1][key.strip()] = value.strip()
    return sections[1:]


def run_darknet(cfg: Path, weights: Path, x: Tensor, folder: Path) -> list[Tensor]:
    np.save(folder / "image.npy", x[0].numpy())
    runner = ROOT / "tests" / "support" / "darknet_runner.py"
    files = [darknet_library(), cfg, weights, folder / "image.npy", folder / "outputs.npz"]
    result = subprocess.run([sys.executable, runner, *files], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    outputs = np.load(folder / "outputs.npz")
    return [torch.from_numpy(outputs[str(index)]) for index in range(len(outputs.files))]


def layers_of(net: Detector, x: Tensor, sections: list[tuple[str, dict[str, str]]]) -> list[Tensor]:
    """Return our outputs [C, H, W] layer by layer of the cfg.

    Modules are met in the order of their registration; routes join earlier layers as the cfg says, and the
    convolution after each shows whether the detector joins the same ones.
    """
    outputs = module_outputs(net, x)
    layers: list[Tensor] = []
    for index, (kind, options) in enumerate(sections):
        if kind == "route":
            sources = [int(source) for source in options["layers"].split(",")]
            layers.append(torch.cat([layers[s + index if s < 0 else s] for s in sources]))
        elif kind == "yolo":
            layers.append(logistic(layers[-1], num_classes=int(options["classes"])))
        else:
            layers.append(outputs[kind].pop(0))
    assert not any(outputs.values()), "modules without a counterpart in the cfg"
    return layers


def module_outputs(net: Detector, x: Tensor) -> dict[str, list[Tensor]]:
    kept: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        kept[module] = output[0]

    modules = list(net.modules())
    inner = {module.conv for module in modules if isinstance(module, ConvBlock)}
    by_kind = defaultdict(list)
    for module in modules:
        for kind, types in KINDS.items():
            if isinstance(module, types) and module not in inner:
                by_kind[kind].append(module)
                module.register_forward_hook(keep)
    with torch.no_grad():
        net(x)
    return {kind: [kept[module] for module in members] for kind, members in by_kind.items()}


def logistic(logits: Tensor, num_classes: int) -> Tensor:
    """Apply darknet's yolo layer: sigmoid on all but the logarithms of the sizes; [A·(5+C), H, W]."""
    anchors = logits.view(-1, 5 + num_classes, *logits.shape[1:])
    activated = anchors.sigmoid()
    activated[:, 2:4] = anchors[:, 2:4]
    return activated.view_as(logits)
