"""Dense engines on one model: the fastest first, and none that is wrong or missing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from prunekit.benchmark.dense import time_dense_engines
from prunekit.benchmark.peers import PEERS
from tests.support.planted_peers import Messages, Planted


def test_engines_that_are_right_are_timed_and_the_others_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "compile", replace(PEERS["compile"], build=Planted(lambda y: y * 1.01)))
    monkeypatch.setitem(PEERS, "openvino", replace(PEERS["openvino"], modules=("no_such_module",)))
    model, messages = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval(), Messages()
    found = time_dense_engines(model, torch.rand(1, 3, 8, 8), ("eager", "folded", "compile", "openvino"), 3, messages)
    assert set(found) == {"torch eager", "torch eager, folded"}
    assert list(found.values()) == sorted(found.values())
    assert min(found.values()) > 0
    wrong, missing = messages.texts
    assert wrong.startswith("torch.compile: not timed, torch.compile differs from torch eager by 0.01 relative RMS")
    assert missing.startswith("OpenVINO: not timed, no_such_module not installed")
