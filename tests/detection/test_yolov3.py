from __future__ import annotations

import pytest
import torch
from torch import nn

from prunekit.detection import MODELS, Detector, yolov3_tiny
from prunekit.detection.blocks import SamePool, SpatialPyramidPool
from prunekit.errors import InputError

NAMES = sorted(MODELS)


def narrow(name: str, num_classes: int = 3) -> Detector:
    torch.manual_seed(0)
    return MODELS[name](num_classes=num_classes, width=1 / 16)


def count_convs(net: nn.Module) -> int:
    return sum(isinstance(module, nn.Conv2d) for module in net.modules())


# Convolutions as in darknet's cfg files; floats of the official weight files less their running statistics.
@pytest.mark.parametrize(
    ("name", "convs", "parameters"),
    [("yolov3", 75, 61_949_149), ("yolov3-tiny", 13, 8_852_366), ("yolov3-spp", 76, 62_998_749)],
)
def test_sizes_are_those_of_the_official_models(name: str, convs: int, parameters: int) -> None:
    with torch.device("meta"):
        net = MODELS[name]()
    assert count_convs(net) == convs
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    assert net.name == name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_classes", [1, 80])
def test_heads_have_the_stated_strides_and_channels(name: str, num_classes: int) -> None:
    net = narrow(name, num_classes).eval()
    outputs = net(torch.rand(2, 3, 64, 96))
    assert [tuple(output.shape) for output in outputs] == [
        (2, len(sizes) * (5 + num_classes), 64 // stride, 96 // stride)
        for sizes, stride in zip(net.anchors, net.strides, strict=True)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_fx_traces_the_model_for_every_size(name: str) -> None:
    net = narrow(name).eval()
    traced = torch.fx.symbolic_trace(net)
    for size in ((32, 32), (64, 96)):
        x = torch.rand(1, 3, *size)
        for found, expected in zip(traced(x), net(x), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_export_agrees_at_a_size(name: str) -> None:
    net = narrow(name).eval()
    for size in ((64, 64), (64, 96)):
        x = torch.rand(1, 3, *size)
        exported = torch.export.export(net, (x,)).module()
        for found, expected in zip(exported(x), net(x), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_width_scales_every_layer_but_the_heads(name: str) -> None:
    net, outputs = narrow(name), 3 * (5 + 3)
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert {conv.out_channels % 4 for conv in convs if conv.out_channels != outputs} == {0}
    assert sum(conv.out_channels == outputs and conv.bias is not None for conv in convs) == len(net.strides)
    assert max(conv.out_channels for conv in convs) == 1024 // 16
    assert min(conv.out_channels for conv in convs) == 4  # nothing shrinks below that


@pytest.mark.parametrize("name", NAMES)
def test_training_starts_with_rare_objects_and_finite_gradients(name: str) -> None:
    net = narrow(name)
    outputs = net.train()(torch.rand(2, 3, 64, 64))
    objectness = torch.cat([output[:, 4].detach().flatten() for output in outputs]).sigmoid()
    assert 0.005 < float(objectness.mean()) < 0.02
    classes = torch.cat([output[:, 5:8].detach().flatten() for output in outputs]).sigmoid()
    assert 0.25 < float(classes.mean()) < 0.42  # one of three
    sum(output.square().mean() for output in outputs).backward()
    for parameter in net.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


def test_same_pool_looks_right_and_down_and_ignores_the_border() -> None:
    x = torch.tensor([[[[-1.0, -2.0], [-3.0, -4.0]]]])
    assert SamePool()(x).tolist() == [[[[-1.0, -2.0], [-3.0, -4.0]]]]
    assert SamePool()(-x).tolist() == [[[[4.0, 4.0], [4.0, 4.0]]]]


def test_pyramid_pooling_puts_the_widest_maximum_first_and_the_input_last() -> None:
    x = torch.zeros(1, 1, 15, 15)
    x[0, 0, 7, 7] = 1
    sizes = [int(channel.sum()) for channel in SpatialPyramidPool()(x)[0]]
    assert sizes == [13**2, 9**2, 5**2, 1]


@pytest.mark.parametrize(("num_classes", "width"), [(0, 1.0), (3, 0.0), (3, -1.0), (3, float("nan"))])
def test_impossible_sizes_are_refused(num_classes: int, width: float) -> None:
    with pytest.raises(InputError, match="Expected"):
        yolov3_tiny(num_classes, width)
