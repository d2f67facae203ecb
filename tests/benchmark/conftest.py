"""What tests of the measuring room share: a peak that is not measured, and a small net to bench."""

from __future__ import annotations

import pytest

from prunekit.benchmark import Settings
from prunekit.benchmark.machine import Peak
from tests.support.planted_peers import small_settings


@pytest.fixture
def known_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the tests the measurement of a peak that none of them is about."""
    monkeypatch.setattr(Peak, "measure", classmethod(lambda cls: cls(64.0, "dense_gemm", 64.0, 16.0)))


@pytest.fixture
def settings() -> Settings:
    return small_settings()
