"""Other sizes and batches: nets whose forward computes with sizes give what torch gives, or one sentence."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.ops.native import native_status
from tests.support.engine_sizes import (
    CHANNELS,
    Forward,
    Net,
    alone_or_not,
    check_same,
    on_engine,
    over_the_batch,
    pad_to_even,
    sizes,
    threshold,
)

pytestmark = [
    pytest.mark.skipif(not native_status().available, reason=f"no native kernels: {native_status().reason}"),
    pytest.mark.usefixtures("one_thread"),
]


#: A tenth of PRUNEKIT_NETS, which makes the random tests longer.
NUM_EXAMPLES = max(8, int(os.environ.get("PRUNEKIT_NETS", "90")) // 10)


def refusal_of(fast: nn.Module, *inputs: Tensor) -> str | None:
    try:
        fast(*inputs)
    except InputError as error:
        return str(error)
    return None


def letterbox(net: Any, x: Tensor) -> Any:
    return net.last(net.first(F.pad(x, [0, -x.shape[3] % 32, -x.shape[2] % 16, 0])))


def pad_to_skip(net: Any, x: Tensor) -> Any:
    skip = net.first(x)
    up = F.interpolate(F.max_pool2d(skip, 2), scale_factor=2)
    dy, dx = skip.shape[2] - up.shape[2], skip.shape[3] - up.shape[3]
    return net.last(skip + F.pad(up, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2]))


def crop_to_skip(net: Any, x: Tensor) -> Any:
    skip = net.first(x)
    up = F.interpolate(F.max_pool2d(skip, 2, ceil_mode=True), scale_factor=2)
    return net.last(skip + up[:, :, : skip.shape[2], : skip.shape[3]])


def interpolate_to_skip(net: Any, x: Tensor) -> Any:
    skip = net.first(x)
    return net.last(skip + F.interpolate(F.avg_pool2d(skip, 3), size=skip.shape[2:]))


def bilinear_to_input(net: Any, x: Tensor) -> Any:
    y = F.interpolate(F.max_pool2d(net.first(x), 2), size=x.shape[-2:], mode="bilinear", align_corners=False)
    return net.last(y)


def shuffle(net: Any, x: Tensor) -> Any:
    y = net.first(x).relu()
    b, c, h, w = y.shape
    return net.last(y.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w))


def window_of_image(net: Any, x: Tensor) -> Any:
    y = net.first(x)
    return net.last(y * F.avg_pool2d(y, y.shape[2:]) + F.max_pool2d(y, kernel_size=y.size()[2:]))


def tokens(net: Any, x: Tensor) -> Any:
    y = net.first(x)
    b, c, h, w = y.shape
    y = y.flatten(2).transpose(1, 2).softmax(1).transpose(1, 2).reshape(b, c, h, w)
    return net.last(y).permute(0, 2, 3, 1).reshape(b, -1, 4)


def transposed_rows(net: Any, x: Tensor) -> Any:
    y = net.first(x)
    y = y.transpose(2, 3).contiguous().view(y.shape[0], CHANNELS, -1)
    return net.last(y.view(y.shape[0], CHANNELS, x.shape[3], x.shape[2]))


def windows(net: Any, x: Tensor) -> Any:
    x = F.pad(x, (0, (4 - x.shape[3] % 4) % 4, 0, (4 - x.shape[2] % 4) % 4))
    y = net.first(x)
    b, c, h, w = y.shape
    y = y.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).contiguous().view(-1, 16, c)
    y = (y - y.mean(1, keepdim=True)).view(b, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4)
    return net.last(y.reshape(b, c, h, w))


def scaled_by_size(net: Any, x: Tensor) -> tuple[Tensor, int, float]:
    y = net.last(net.first(x) * (x.shape[2] / x.shape[3]))
    return y, x.shape[2], x.shape[0] * 2


def halves(net: Any, x: Tensor) -> Any:
    y = net.first(x)
    h = y.shape[2] // 2
    return net.last(torch.cat([y[:, :, h:], y[:, :, :h]], 2))


#: What can be written as expressions of sizes: to be refused nowhere.
EXPRESSIBLE: list[Forward] = [
    pad_to_even, letterbox, pad_to_skip, crop_to_skip, interpolate_to_skip, bilinear_to_input, shuffle,
    window_of_image, tokens, transposed_rows, windows, scaled_by_size, halves,
]  # fmt: skip


def square_or_not(net: Any, x: Tensor) -> Any:
    y = net.last(net.first(x))
    return y.transpose(2, 3) if x.shape[2] == x.shape[3] else y


def one_row_or_more(net: Any, x: Tensor) -> Any:
    y = net.last(net.first(x)).squeeze()
    return y.flip(-1) if y.dim() == 4 else y * 2


def quarter_windows(net: Any, x: Tensor) -> Any:
    y = net.last(net.first(x))
    return F.avg_pool2d(y, (y.shape[2] // 4, y.shape[3] // 4))


#: What branches on sizes, or needs them as numbers: right, or one sentence.
BRANCHING: list[Forward] = [
    threshold, square_or_not, alone_or_not, one_row_or_more, quarter_windows, over_the_batch,
]  # fmt: skip


@pytest.mark.parametrize("forward", EXPRESSIBLE, ids=lambda f: f.__name__)
def test_expressible_forwards_run_at_every_size_and_batch(forward: Forward) -> None:
    draw = random.Random(forward.__name__)
    for example in ((1, 13, 16), (2, 16, 12)):
        net = Net(forward).eval()
        fast = on_engine(net, torch.randn(example[0], 3, *example[1:]))
        for batch in (1, 2, 3):
            check_same(net, fast, torch.randn(batch, 3, draw.randint(4, 40), draw.randint(4, 40)))
        check_same(net, fast, torch.randn(example[0], 3, *example[1:]))


@settings(max_examples=NUM_EXAMPLES, deadline=None, derandomize="PRUNEKIT_NETS" not in os.environ)
@given(st.sampled_from(EXPRESSIBLE + BRANCHING), sizes, st.lists(sizes, min_size=1, max_size=4))
def test_any_forward_is_right_or_refused(
    forward: Forward, example: tuple[int, int, int], others: Sequence[tuple[int, int, int]]
) -> None:
    net = Net(forward).eval()
    fast = on_engine(net, torch.randn(example[0], 3, *example[1:]))
    check_same(net, fast, torch.randn(example[0], 3, *example[1:]))
    for batch, height, width in others:
        x = torch.randn(batch, 3, height, width)
        refusal = refusal_of(fast, x)
        assert refusal is None or (forward in BRANCHING and "xpected" in refusal), refusal
        if refusal is None:
            check_same(net, fast, x)


def test_a_branch_on_a_size_is_refused_beyond_it() -> None:
    net = Net(threshold).eval()
    fast = on_engine(net, torch.randn(1, 3, 12, 12))
    check_same(net, fast, torch.randn(3, 3, 19, 30))
    with pytest.raises(InputError, match=r"Expected sizes .* \(x\.shape\[2\] < 20\), got x of shape \[1, 3, 20, 12\]"):
        fast(torch.randn(1, 3, 20, 12))


def test_what_depends_on_the_rank_of_a_value_is_refused_where_it_differs() -> None:
    net = Net(one_row_or_more).eval()
    fast = on_engine(net, torch.randn(2, 3, 12, 12))
    check_same(net, fast, torch.randn(3, 3, 7, 9))
    with pytest.raises(InputError, match="xpected"):
        fast(torch.randn(1, 3, 12, 12))
