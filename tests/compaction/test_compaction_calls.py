"""Whatever a forward takes, returns and does is compacted, and nothing handed over is changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import prunekit
from prunekit.compaction import compact
from prunekit.comparison import compare
from prunekit.errors import InputError
from tests.support.compaction_calls import X, exactly, net_of, plain
from tests.support.pruning_nets import Net
from tests.support.untouched import untouched


class Boxes(NamedTuple):
    boxes: Tensor
    scores: Tensor


@pytest.mark.parametrize(
    "outputs",
    [
        lambda y: Boxes(y, y[:, :1]),
        lambda y: y.flatten(1).topk(3),
        lambda y: (y, [None, {"n": 3, "y": y}]),
        lambda y: (y, y[:, :0], y[y > 1e6]),
    ],
)
def test_outputs_of_any_nesting_come_back_from_files(outputs: Callable[[Tensor], Any], tmp_path: Path) -> None:
    net = net_of(lambda n, x: outputs(plain(n, x)))
    result = exactly(net, X)
    prunekit.save(result, tmp_path / "small.prunekit")
    with torch.no_grad():
        expected, found = result.model(X), prunekit.load(tmp_path / "small.prunekit")(X)
    assert type(found).__name__ == type(expected).__name__
    for a, b in zip(expected, found, strict=True):
        if isinstance(a, Tensor):
            assert torch.allclose(a, b)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((X,), {"scale": torch.tensor(2.0)}),
        ((X, None), {}),
        ((X,), {"offset": 1.5, "scale": None}),
        (([X[0], X[0] + 1],), {}),
        (({"image": X, "id": 3},), {}),
    ],
)
def test_calls_of_any_kind_are_compacted_saved_and_called_again(
    args: tuple[Any, ...], kwargs: dict[str, Any], tmp_path: Path
) -> None:
    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net_of(plain)

        def forward(self, x: Any, scale: Tensor | None = None, *, offset: float = 0.0) -> Tensor:
            x = torch.stack(x) if isinstance(x, list) else x["image"] if isinstance(x, dict) else x
            y: Tensor = self.net(x) + offset
            return y if scale is None else y * scale

    result = exactly(Called().eval(), *args, example_kwargs=kwargs)
    assert result.certificate.removed == 4
    prunekit.save(result, tmp_path / "small.prunekit")
    loaded = prunekit.load(tmp_path / "small.prunekit")
    with torch.no_grad():
        assert compare(result.model(*args, **kwargs), loaded(*args, **kwargs)).relative_rms <= 1e-5
    with pytest.raises(InputError):
        loaded(*args, **kwargs, unknown=3)


def test_a_dict_of_parameters_is_a_keyword_call() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net_of(plain)

        def forward(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
            y: Tensor = self.net(images)
            return y if sizes is None else y / sizes

    result = compact(Named().eval(), {"images": X, "sizes": torch.tensor(3.0)}, multiple_of=1, latency_runs=0)
    assert (result.example, set(result.example_kwargs)) == ((), {"images", "sizes"})


def test_a_forward_that_writes_into_its_input_gets_copies() -> None:
    def wiring(n: Any, x: Tensor) -> Tensor:
        x.sub_(0.5).div_(2)
        return plain(n, x)

    result = exactly(net_of(wiring), X)
    with torch.no_grad():
        assert torch.allclose(net_of(wiring)(X.clone()), result.model(X.clone()), atol=1e-6)


def test_a_forward_that_changes_its_buffers_is_refused() -> None:
    net = net_of(lambda n, x: plain(n, x) + n.count.add_(1))
    net.register_buffer("count", torch.zeros(1))
    with untouched(net, X), pytest.raises(InputError, match=r"buffers alone in eval mode, but Net changes count"):
        compact(net, X, latency_runs=0)


@pytest.mark.parametrize(
    "put",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        lambda layer: nn.utils.prune.l1_unstructured(layer, "weight", 0.3),  # type: ignore[no-untyped-call]
    ],
)
def test_masks_hold_for_computed_weights_and_the_original_works_on(put: Callable[[nn.Module], Any]) -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(put(nn.Conv2d(3, 8, 3)), nn.ReLU(), put(nn.Conv2d(8, 4, 1)))
    net(X).sum().backward()  # leaves weights with a graph, which deepcopy refuses
    net.eval()
    mask = torch.arange(8) % 2 == 0
    with torch.no_grad():
        before = net(X)
    result = exactly(net, X, masks={"0": mask})
    expected: Any = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        for index in (0, 2):
            expected[index].weight.copy_(net[index].weight)
            expected[index].bias.copy_(net[index].bias)
        expected[0].weight[~mask] = 0.0
        assert compare(expected(X), result.model(X)).relative_rms < 1e-6
        assert torch.equal(before, net(X))
    assert len(result.model.get_submodule("0").weight) == 4  # type: ignore[arg-type]
    assert set(dict(result.model.named_parameters())) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    net.train()(X).sum().backward()


def test_a_mask_that_a_foreign_hook_undoes_is_refused() -> None:
    net = net_of(plain)
    kept = net.a.weight.detach().clone() + 1.0

    def restore(layer: Any, args: object) -> None:
        layer.weight.data.copy_(kept)

    net.a.register_forward_pre_hook(restore)
    with pytest.raises(InputError, match="mask of layer 'a' to hold, but something computes"):
        compact(net, X, {"a": torch.arange(8) > 3}, latency_runs=0)


def test_wrappers_are_taken_off_and_masks_may_have_their_names() -> None:
    mask = torch.arange(8) % 2 == 1
    wrapped: Any
    for wrapped, name in ((torch.compile(net_of(plain)), "_orig_mod.a"), (nn.DataParallel(net_of(plain)), "module.a")):
        result = compact(wrapped.eval(), X, {name: mask, "b": torch.ones(4).bool()}, multiple_of=1, latency_runs=0)
        assert type(result.model) is Net
        assert result.certificate.removed >= 4


def test_the_module_of_an_exported_program_loses_channels() -> None:
    module = torch.export.export(net_of(plain), (X,)).module()
    result = exactly(module, X)
    assert result.certificate.removed == 4
    assert result.model.get_submodule("a").weight.shape == (4, 3, 3, 3)
    assert not result.model.training
    assert module.get_submodule("a").weight.shape == (8, 3, 3, 3)


def test_torchscript_is_refused_in_a_sentence() -> None:
    script = torch.jit.trace(nn.Sequential(nn.Conv2d(3, 4, 1)).eval(), X)  # type: ignore[no-untyped-call]
    with pytest.raises(InputError, match="got a TorchScript program"):
        compact(script, X)


def test_functional_convolutions_and_forwards_of_subclasses_pass_no_new_bias() -> None:
    class Doubled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * functional.conv2d(x, self.weight, None, self.stride, self.padding)

    net = net_of(lambda n, x: functional.conv2d(torch.sigmoid(n.a(x)), n.b.weight))
    result = exactly(net, X)
    assert result.certificate.removed == 3  # a carrier takes what would have gone into the bias
    net = net_of(plain)
    net.b = Doubled(8, 4, 1, bias=False)
    assert exactly(net.eval(), X).certificate.removed == 3


def test_values_of_one_dimension_are_followed() -> None:
    def wiring(n: Any, x: Tensor) -> Tensor:
        y = n.a(x)
        mean = y.mean((0, 2, 3))
        return n.b(y * (mean * mean.sigmoid()).view(1, -1, 1, 1))  # type: ignore[no-any-return]

    net = net_of(wiring)
    net.a.bias.data[::2] = 0.0
    assert exactly(net, X).certificate.removed == 4


def test_a_rule_that_fails_keeps_its_channels_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(flow: object, node: object) -> None:
        raise IndexError("Dimension out of range")

    monkeypatch.setitem(prunekit.graph.channels.channel_flow.RULES, "sigmoid", fails)
    certificate = exactly(net_of(plain), X).certificate
    assert certificate.removed == 0
    assert certificate.kept_whole == ("sigmoid has a form that its rule does not know (IndexError)",)


def test_a_detector_that_does_not_trace_names_its_backbone() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = net_of(plain), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.backbone(x)
            return self.head(y) if float(y.sum()) > 0 else y

    model = Branching().eval()
    with untouched(model, X), pytest.raises(InputError, match=r"may trace alone: compact\(model\.backbone, \.\.\.\)"):
        compact(model, X)
