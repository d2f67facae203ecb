"""What the proof of a compaction compares: in float64 where that runs, with the same random numbers, past ties."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import prunekit
from prunekit.compaction import Certificate, compact, proving
from prunekit.compaction.widening import ComputingInFloat64
from prunekit.errors import InputError, WrongOutputError
from prunekit.graph.calls import Call
from tests.support.compaction_calls import X, exactly, net_of, plain
from tests.support.untouched import untouched


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
