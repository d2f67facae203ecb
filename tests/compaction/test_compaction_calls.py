"""Whatever a forward takes, returns and does: compared by count, in float64, and nothing handed over is changed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import prunekit
from prunekit.compaction import Certificate, CompactionResult, compact, proving
from prunekit.compaction.widening import ComputingInFloat64
from prunekit.comparison import compare
from prunekit.errors import InputError, WrongOutputError
from prunekit.graph.calls import Call
from tests.support.pruning_nets import Net
from tests.support.untouched import untouched

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Boxes(NamedTuple):
    boxes: Tensor
    scores: Tensor


def net_of(wiring: Callable[[Any, Any], Any]) -> Any:
    """Two convolutions, of which the first has half of its filters masked; their constants are not zero."""
    torch.manual_seed(0)
    net: Any = Net(wiring, a=nn.Conv2d(3, 8, 3, padding=1), b=nn.Conv2d(8, 4, 1)).eval()
    net.a.weight.data[::2] = 0.0
    return net


def plain(n: Any, x: Tensor) -> Tensor:
    y: Tensor = n.b(torch.sigmoid(n.a(x)))
    return y


def exactly(net: nn.Module, *args: Any, **how: Any) -> CompactionResult:
    """Compact; the proof compared something, and the arguments are what they were."""
    with untouched(net, args, how.get("example_kwargs", {})):
        result = compact(net, args, multiple_of=1, latency_runs=0, **how)
    assert result.certificate.compared.elements > 0
    assert result.certificate.compared.relative <= 1e-10
    return result


def test_what_was_compared_is_counted() -> None:
    certificate = exactly(net_of(lambda n, x: {"y": plain(n, x), "sum": plain(n, x).sum()}), X).certificate
    first = certificate.float64[0]
    assert (first.tensors, first.elements) == (2, 4 * 64 + 1)
    assert certificate.compared.inputs == len(certificate.float64) == 4
    assert f"{certificate.compared.elements:,} numbers in 8 tensors of 4 inputs" in str(certificate)
    assert Certificate.from_json(certificate.to_json()) == certificate


def test_certificates_of_older_files_are_read() -> None:
    document = exactly(net_of(plain), X).certificate.to_json()
    for row in (*document["float64"], document["float32"]):
        del row["tensors"], row["elements"]
    del document["own_dtype"], document["proof_dtype"]
    assert "channels removed" in str(Certificate.from_json(document))


@pytest.mark.parametrize(
    ("cast", "x"),
    [
        (lambda x: x.float() / 255, torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)),
        (lambda x: x.float(), X),
        (lambda x: x.half().float(), X),
        (lambda x: x.to(torch.bfloat16).to(x.dtype) + torch.zeros(8, dtype=torch.float16), X),
        (lambda x: x * torch.arange(8.0) + torch.tensor(0.5), X),
    ],
)
def test_casts_inside_are_left_out_of_the_proof(cast: Callable[[Tensor], Tensor], x: Tensor) -> None:
    certificate = exactly(net_of(lambda n, x: plain(n, cast(x))), x).certificate
    assert certificate.proof_dtype == "float64"
    assert certificate.max_difference_float64 <= 1e-14
    assert certificate.removed == 4


def test_autocast_inside_is_looked_through_and_saved(tmp_path: Path) -> None:
    def wiring(n: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = n.a(x)
            torch.sigmoid_(y)
            return n.b(y).float()  # type: ignore[no-any-return]

    result = exactly(net_of(wiring), X)
    assert (result.certificate.removed, result.certificate.proof_dtype) == (4, "float64")
    prunekit.save(result, tmp_path / "small.prunekit")
    with torch.no_grad():
        assert torch.equal(result.model(X), prunekit.load(tmp_path / "small.prunekit")(X))


def test_a_weight_that_is_cast_is_the_layer_s_own() -> None:
    def wiring(n: Any, x: Tensor) -> Tensor:
        y = torch.sigmoid(n.a(x)).to(torch.bfloat16)
        return functional.conv2d(y, n.b.weight.to(y.dtype), n.b.bias.to(y.dtype)).float()

    assert exactly(net_of(wiring), X).certificate.removed == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_proved_in_float64(dtype: torch.dtype) -> None:
    result = exactly(net_of(plain).to(dtype), X.to(dtype))
    assert result.certificate.proof_dtype == "float64"
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    assert 0 < result.certificate.float32.relative < 0.1


def test_a_model_that_does_not_run_in_float64_is_compared_in_its_own_dtype() -> None:
    def only_float32(n: Any, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise RuntimeError("only float32")
        return plain(n, x)

    with untouched(X):
        certificate = compact(net_of(only_float32), X, multiple_of=1, latency_runs=0).certificate
    assert (certificate.float64, certificate.proof_dtype) == ((), "float32")
    assert certificate.compared.inputs == 4
    assert certificate.compared.elements > 0
    assert "own dtype, because the model does not run" in str(certificate)
    assert Certificate.from_json(certificate.to_json()) == certificate


def test_a_wrong_cut_is_found_without_float64_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_float32(n: Any, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        return plain(n, x)

    monkeypatch.setattr("prunekit.compaction.surgery._shift", lambda weight, cut: weight.new_zeros(len(weight)))
    with pytest.raises(WrongOutputError, match=r"at most 0\.0001 in float32"):
        compact(net_of(only_float32), X, latency_runs=0)


def test_float64_reaches_every_operator() -> None:
    with ComputingInFloat64():  # type: ignore[no-untyped-call]
        x = torch.zeros(2, dtype=torch.float32) + X.to(torch.float16).mean()
        y = torch.full((2,), 0.5).bfloat16().matmul(x.float())
    assert (x.dtype, y.dtype) == (torch.float64, torch.float64)


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
    "noise", [lambda x: functional.dropout(x, 0.5), lambda x: x + torch.randn(1), lambda x: x + torch.rand_like(x)]
)
def test_random_models_are_compared_with_the_same_random_numbers(noise: Callable[[Tensor], Tensor]) -> None:
    result = exactly(net_of(lambda n, x: n.b(noise(torch.sigmoid(n.a(x))))), X)
    assert "the model draws random numbers; both models were given the same" in result.certificate.notes


def test_a_model_that_does_not_repeat_itself_is_blamed_and_not_the_compaction() -> None:
    calls = itertools.count()
    with pytest.raises(InputError, match="returns the same for the same input, but Net is random"):
        compact(net_of(lambda n, x: plain(n, x) + next(calls)), X, latency_runs=0)


def test_ties_are_no_difference_and_a_wrong_number_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def wiring(n: Any, x: Tensor) -> Any:
        y = plain(n, x)
        doubled = torch.cat([y, y], dim=1)  # each number twice, so that rounding decides
        return doubled.argmax(1), doubled.flatten(1).topk(9)

    certificate = exactly(net_of(wiring), X).certificate
    assert all(row.elements > 0 for row in certificate.float64)
    monkeypatch.setattr("prunekit.compaction.surgery._shift", lambda weight, cut: weight.new_zeros(len(weight)))
    with pytest.raises(WrongOutputError):
        compact(net_of(wiring), X, latency_runs=0)


def test_rounding_at_a_tie_is_looked_through() -> None:
    """The proof compares what flows into argmax where its decisions differ, and says so."""

    class Tie(nn.Module):
        def __init__(self, rounding: float) -> None:
            super().__init__()
            self.rounding = rounding

        def forward(self, x: Tensor) -> Any:
            y = torch.cat([x, x + self.rounding], dim=1)
            return y.argmax(1), y

    proof = proving.prove(Tie(0.0), Call((X,)))
    row = proof.difference(Tie(1e-14), proof.trials[0])
    assert row.input.endswith("up to ties of argmax")
    assert proof.is_equal(row)
    assert not proof.is_equal(proof.difference(Tie(1e-3), proof.trials[0]))


def test_outputs_without_numbers_are_an_error() -> None:
    with pytest.raises(InputError, match="tensors on example 0×3×8×8 hold none"):
        compact(net_of(plain), X[:0], latency_runs=0)
    with pytest.raises(InputError, match="hold none"):
        compact(net_of(lambda n, x: {"n": 3} if plain(n, x) is None else {}), X, latency_runs=0)
    with pytest.raises(InputError, match="sequence or dict that holds tensors, got str"):
        compact(net_of(plain), "x", latency_runs=0)


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


class Amplifying(nn.Module):
    """Multiplies whatever rounding does by a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.factor = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), factor

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.factor * self.second(self.first(x)))


def test_differences_of_models_that_amplify_rounding_are_judged_by_their_own() -> None:
    masks = {"first": torch.arange(8)[:, None, None, None].expand(8, 3, 3, 3) % 2 == 0}
    plain, amplified = (compact(Amplifying(factor).eval(), X, masks, latency_runs=0) for factor in (1.0, 1e7))
    assert not any("amplifies" in note for note in plain.certificate.notes)
    assert any("the model amplifies rounding" in note for note in amplified.certificate.notes)
    assert amplified.certificate.removed == plain.certificate.removed == 4
    worst = max(row.relative for row in amplified.certificate.float64)
    assert 1e-10 < worst < 1e-6
    with pytest.raises(InputError, match="whose outputs float64 determines, but those of Amplifying move by"):
        compact(Amplifying(1e13).eval(), X, masks, latency_runs=0)
