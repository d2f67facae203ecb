"""Random models of the kinds that people bring: exact, with a proof of something, and what was given is untouched."""

from __future__ import annotations

import copy
import os
import random
from typing import Any

import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from prunekit.compaction import CompactionResult, compact
from prunekit.discontinuous import check_continuous
from tests.support.compaction_kinds import Example, Kind, build, random_kind
from tests.support.untouched import untouched

#: PRUNEKIT_NETS=2000 tries more.
NUM_NETS = int(os.environ.get("PRUNEKIT_NETS", "60"))


@settings(max_examples=NUM_NETS, deadline=None, suppress_health_check=list(HealthCheck))
@given(draw=st.randoms(use_true_random=False))
def test_models_of_all_kinds_are_compacted_exactly_and_left_alone(draw: random.Random) -> None:
    kind = random_kind(draw)
    note(str(kind))
    example = build(kind, draw)
    with untouched(example.model, example.args, example.kwargs, example.masks):
        result = compact(
            example.model, example.args, example.masks, example_kwargs=example.kwargs, multiple_of=1, latency_runs=0
        )
    check_proof(kind, example, result)
    check_outputs(kind, example, result)


def check_proof(kind: Kind, example: Example, result: CompactionResult) -> None:
    """Something was compared, in float64, and the certificate says how much."""
    certificate = result.certificate
    assert certificate.compared.elements > 0
    assert certificate.compared.inputs == len(certificate.proof) >= 2
    assert certificate.proof_dtype == "float64"
    assert f"{certificate.compared}" in str(certificate)
    first: Any = example.expected.get_submodule("first")  # its masked channels can go; others may be tied to live ones
    keeps_all_of_first = bool(first.weight.flatten(1).any(1).all())
    assert certificate.removed > 0 or kind.gate or kind.shares_module or keeps_all_of_first
    is_random = kind.noise != "none" and kind.cast != "uint8"
    assert any("random numbers" in text for text in certificate.notes) == is_random


@torch.no_grad()
def check_outputs(kind: Kind, example: Example, result: CompactionResult) -> None:
    """The model itself, with its effective weights masked by hand, returns the same."""

    def run(model: Any) -> Any:
        args, kwargs = copy.deepcopy((example.args, example.kwargs))
        with torch.random.fork_rng([]):
            torch.manual_seed(1)
            return model(*args, **kwargs)

    check_continuous(
        lambda: run(example.expected), lambda: run(result.model), str(kind), 5e-2 if kind.cast == "autocast" else None
    )
