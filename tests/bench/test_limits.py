"""bench/limits.py: what a cut makes a convolution do, at which cache's rate, counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunekit
from bench.limits import Account, Conv, Rates, account, convolutions, main, measure_rates
from prunekit.engine.filters import ConvChoice
from prunekit.engine.model import AcceleratedModel
from prunekit.ops import native

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not native.is_available(), reason="the compiled kernels are not built"),
]
# A first cache of 4 KiB, ten times as fast as what is behind it.
RATES = Rates(0.5, lambda n: 1.0 if n <= 4096 else 10.0, lambda n: 2.0 if n <= 4096 else 20.0)


def _account(density: float, choice: ConvChoice, channels: int = 8) -> Account:
    ms = account(Conv((4, channels, 3, 3), density, choice, vectors=20, row_vectors=20, lanes=16), RATES)
    return Account(*(1e6 * value for value in (ms.products, ms.sums, ms.results, ms.weights)))  # nanoseconds


def test_one_row_loads_for_every_product() -> None:
    # 4 · 8 · 9 taps, a quarter of them kept, 20 vectors; 1 channel · 3 rows · (10 + 2) vectors are 2304 bytes.
    costs = _account(0.25, ConvChoice(rows=1, tile_vectors=10, channel_block=1))
    assert costs.products == pytest.approx(72 * 20 * 1.0)
    assert costs.sums == pytest.approx(7 * 4 * 20 * 2.0)  # between eight blocks; 4 rows · 10 vectors rest
    assert costs.results == pytest.approx(4 * 20 * 20.0)  # 5120 bytes
    assert costs.weights == pytest.approx(2 * (72 + 72) * 0.5)  # two tiles


def test_rows_share_loads_and_then_products_count() -> None:
    all_kept = _account(1.0, ConvChoice(rows=4, tile_vectors=10, channel_block=1))
    assert all_kept.products == pytest.approx(288 * 20 * 0.5)  # a load serves four products, so these take longer
    few = _account(0.25, ConvChoice(rows=4, tile_vectors=10, channel_block=1))
    assert few.products == pytest.approx(72 * (1 - 0.75**4) * 20 * 1.0)


def test_a_block_beyond_the_first_cache_is_read_from_the_next() -> None:
    costs = _account(0.25, ConvChoice(rows=1, tile_vectors=10, channel_block=8))
    assert costs.products == pytest.approx(72 * 20 * 10.0)
    assert costs.sums == 0
    assert (costs + costs).total == pytest.approx(2 * costs.total)


def test_the_engines_convolutions_are_found_as_they_run() -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)).eval()
    with torch.no_grad():
        for conv in net:
            conv.weight[:, ::2] = 0  # type: ignore[operator]
    fast = prunekit.accelerate(net, torch.randn(1, 4, 32, 32), tuning_cache=None)
    assert isinstance(fast, AcceleratedModel)
    first, second = convolutions(fast).values()
    assert (first.weight, first.density, second.weight) == ((8, 4, 3, 3), 0.5, (8, 8, 3, 3))
    assert first.vectors * first.lanes >= 32 * 32
    assert second.vectors * second.lanes >= 16 * 16
    assert first.choice.channel_block <= 4


def test_rates_are_measured() -> None:
    rates = measure_rates()
    for nanoseconds in (rates.product_ns, rates.from_ns(1 << 14), rates.rewrite_ns(1 << 14)):
        assert 0 < nanoseconds < 1e3
    with pytest.raises(RuntimeError, match="expected at least 12 vectors"):
        native.vector_times(64)


def test_a_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--width", "0.1", "--image-size", "64", "--ratios", "90", "--runs", "2", "--layers"])
    printed = capsys.readouterr().out
    assert printed.count('"layer"') == 75
    assert "account" in printed
