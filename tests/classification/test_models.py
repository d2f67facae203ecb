"""The networks have the published sizes, take small and large images, and can be pruned, compacted and accelerated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import prunekit
from prunekit.classification import MODELS
from prunekit.classification.blocks import MEAN, STD, Normalize
from prunekit.prune import MaskRule, apply_masks, channel_groups, count_costs, score_model
from prunekit.prune.deeplift import Comparison, deeplift_scores

pytestmark = pytest.mark.usefixtures("one_thread")

# With ten classes on CIFAR and a thousand on ImageNet; where torchvision or timm has the network, its own numbers
# (VGG's without the biases that its batch normalization makes idle).
PARAMETERS = {
    "resnet18": (11_173_962, 11_689_512),
    "resnet20": (272_474, 338_744),
    "resnet50": (23_520_842, 25_557_032),
    "wrn28-4": (5_849_050, 6_105_400),
    "vgg16-bn": (15_311_818, 138_361_768),
    "mobilenetv2": (2_236_682, 3_504_872),
    "mobilevit-s": (4_944_042, 5_578_632),
}
# Multiply-accumulates at 32×32 pixels; the second as published, and the two shortcuts that are convolutions here.
SMALL_MACS = {"resnet18": 555_422_720, "resnet20": 40_551_040 + 2 * 131_072}


def tiny(name: str, small_images: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name](5, width=0.125, small_images=small_images).eval()


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_the_published_number(name: str) -> None:
    with torch.device("meta"):
        nets = MODELS[name](10, small_images=True), MODELS[name](1000, small_images=False)
    assert tuple(sum(p.numel() for p in net.parameters()) for net in nets) == PARAMETERS[name]


@pytest.mark.parametrize("name", SMALL_MACS)
def test_small_images_are_seen_at_full_resolution(name: str) -> None:
    with torch.device("meta"):
        net = MODELS[name](10, small_images=True)
        assert count_costs(net, torch.empty(1, 3, 32, 32)).macs == SMALL_MACS[name]


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_small_and_large_images_train(name: str) -> None:
    for small, size in ((True, 32), (False, 64)):
        net = tiny(name, small).train()
        logits = net(torch.rand(3, 3, size, size))
        assert logits.shape == (3, 5)
        logits.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_pixels_are_normalized_inside() -> None:
    x = torch.rand(2, 3, 4, 4)
    expected = torch.stack([(x[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1)
    assert_close(Normalize()(x), expected)
    bare, normalized = MODELS["resnet20"](5, width=0.25, normalized=False), MODELS["resnet20"](5, width=0.25)
    normalized.load_state_dict(bare.state_dict(), strict=False)
    assert_close(normalized.eval()(x), bare.eval()(expected))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "mobilevit-s"])
def test_dropped_filters_are_compacted(name: str) -> None:
    net, x = tiny(name), torch.rand(1, 3, 32, 32)
    groups = channel_groups(net, x)
    rule = MaskRule(50, "filter", "layer", groups=groups)
    apply_masks(net, rule(score_model(net, "magnitude")), groups)
    small = prunekit.compact(net, x, multiple_of=1)
    before, after = (sum(p.numel() for p in model.parameters()) for model in (net, small.model))
    assert after < 0.7 * before
    with torch.no_grad():
        assert_close(small.model(x), net(x), rtol=1e-3, atol=1e-3)


def test_a_whole_classifier_runs_on_the_engine() -> None:
    net, x = tiny("resnet20"), torch.rand(1, 3, 32, 32)
    fast = prunekit.accelerate(net, x, tuning_seconds=0, tuning_cache=None)
    with torch.no_grad():
        assert_close(fast(x), net(x), rtol=1e-3, atol=1e-3)


def test_a_transformer_loses_weights_and_keeps_its_filters_tied() -> None:
    net, x = tiny("mobilevit-s"), torch.rand(2, 3, 32, 32)
    masks = MaskRule(50)(score_model(net, "magnitude"))
    apply_masks(net, masks)
    assert net(x).isfinite().all()
    assert channel_groups(net, x).stems


def _true_class(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 1]


@pytest.mark.parametrize("name", ["resnet20", "vgg16-bn", "mobilenetv2", "wrn28-4"])
def test_deeplift_explains_through_every_block(name: str) -> None:
    target: Callable[[torch.Tensor], torch.Tensor] = _true_class
    scores = deeplift_scores(tiny(name), [Comparison(torch.rand(2, 3, 32, 32), torch.zeros(1, 3, 32, 32), target)])
    assert all(score.isfinite().all() and score.abs().sum() > 0 for score in scores.values())
