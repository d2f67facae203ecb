"""A convolution's filter as the lane kernels read it: packed for a choice of blocks, ids turned into offsets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
import torch
from torch import Tensor

import prunekit.ops.packed_conv2d  # noqa: F401 - registers pack_filter
from prunekit.engine.graph import Graph, SparseWeight
from prunekit.engine.lanes import Indices
from prunekit.engine.quantization import MAX_WEIGHT, QUAD, quad_words, within_pairs
from prunekit.errors import InputError
from prunekit.ops import native

# Words of a packed filter's header (csrc/sparse_filter.h).
_CHANNELS, _CHANNEL_BLOCK, _NUM_IDS = 2, 7, 9
_MAX_UINT16, _MAX_UINT32 = 65535, 2**32 - 1
#: Taps of a channel block: csrc/sparse_filter.h numbers them in 16 bits.
MAX_BLOCK_TAPS = 65535
#: Taps of a kernel in int8: as many fit where the weights of a quad take two words.
MAX_QUAD_TAPS = MAX_BLOCK_TAPS // 2
# Bytes of the input that a channel block should touch for one tile: it shares L1 with weights and sums.
_L1_BYTES = 20 * 1024
# Kept weights a row and channel block that make the passing of its sums cheap.
_MIN_KEPT_A_BLOCK = 12


@dataclass(frozen=True)
class ConvChoice:
    """How a convolution is cut.

    Attributes:
        rows: Output channels that share loads: 1, 2 or 4.
        tile_vectors: Output vectors at a time.
        channel_block: Input channels at a time.
        row_parts: Ranges of output channels that are tasks of their own.
        repeats: Neighboring tiles that a row group does in one go; only with all input channels in one block.
    """

    rows: int
    tile_vectors: int
    channel_block: int
    row_parts: int = 1
    repeats: int = 1

    @property
    def is_sound(self) -> bool:
        """Whether the numbers can be a choice; those of a file may be anything."""
        return all(type(n) is int and n >= 1 for n in astuple(self)) and self.rows in (1, 2, 4)

    def __str__(self) -> str:
        rows = f"{self.rows} row{'s'[: self.rows > 1]}"
        tiles = f"{self.repeats} × {self.tile_vectors}" if self.repeats > 1 else f"{self.tile_vectors}"
        parts = f", {self.row_parts} parts" if self.row_parts > 1 else ""
        return f"{rows} × {tiles} vectors, {self.channel_block} channels{parts}"


@dataclass(frozen=True)
class LaneFilter:
    """A packed filter for one geometry.

    Attributes:
        index: The packed filter's index, int32 (csrc/sparse_filter.h).
        values: The kept weights, float32 or bfloat16, or four int8 in a float32's clothes.
        offsets: Per id the tap's offset in vectors from its channel block, uint16 in int16's clothes, or int32.
    """

    index: Tensor
    values: Tensor
    offsets: Tensor

    @property
    def is_wide(self) -> bool:
        """Whether the offsets take 32 bits."""
        return self.offsets.dtype == torch.int32

    @property
    def is_narrow(self) -> bool:
        """Whether the values take 16 bits."""
        return self.values.dtype == torch.bfloat16


def pack_for_lanes(
    sparse: SparseWeight, groups: int, choice: ConvChoice, tap_offsets: Indices, channel: int, is_wide: bool = False
) -> LaneFilter:
    """Pack a weight [K, C / groups, R, S]; `channel` is the vectors from channel to channel.

    Offsets take 32 bits where 16 are not enough, or where `is_wide` asks for them.

    Raises:
        InputError: 32 are not enough either.
    """
    weight = sparse.dense()
    index, values = torch.ops.prunekit.pack_filter(weight, weight != 0, groups, choice.rows, choice.channel_block)
    return _for_lanes(index, values.to(sparse.values.dtype), tap_offsets, channel, is_wide)


def pack_quads(
    sparse: SparseWeight, groups: int, choice: ConvChoice, tap_offsets: Indices, channel: int, is_wide: bool = False
) -> LaneFilter:
    """Pack an int8 weight: a value is the four weights of a quad of input channels, in a float32's clothes.

    The other arguments are `pack_for_lanes`'.

    Raises:
        InputError: as there.
    """
    parts = words_a_quad()
    words = quad_words(sparse, groups)
    if parts > 1:  # the words of a quad are packed as those of neighboring channels
        words = torch.stack(within_pairs(words, native.quad_layout().max_pair), 2).flatten(1, 2)
    block = parts * min(choice.channel_block, max_quads_a_block(sparse.shape))
    index, values = torch.ops.prunekit.pack_filter(words.view(torch.float32), words != 0, 1, choice.rows, block)
    index[[_CHANNELS, _CHANNEL_BLOCK]] //= parts
    return _for_lanes(index, values, tap_offsets, channel, is_wide, parts)


def words_a_quad() -> int:
    """Return how many words the kernels of the set in use take for the weights of a quad: the second is mostly zero."""
    return 2 if native.quad_layout().max_pair < 2 * MAX_WEIGHT else 1


def max_quads_a_block(shape: Sequence[int]) -> int:
    """Return how many quads of input channels of a weight [K, C, R, S] one block can have."""
    return MAX_BLOCK_TAPS // words_a_quad() // math.prod(shape[2:])


def _for_lanes(
    index: Tensor, values: Tensor, tap_offsets: Indices, channel: int, is_wide: bool, parts: int = 1
) -> LaneFilter:
    """Turn a packed filter's ids into offsets; `parts` of a block's packed channels read the same channel."""
    block = parts * int(index[_CHANNEL_BLOCK])
    num_ids = int(index[_NUM_IDS])
    words = index.numpy()
    ids = words[len(words) - -(-num_ids // 2) :].view(np.uint16)[:num_ids]
    table = (np.arange(block)[:, None] // parts * channel + tap_offsets[None, :]).reshape(-1)
    if table.max() > _MAX_UINT32:
        raise InputError(f"a block of {block} channels spans 2^32 vectors or more: use smaller images.")
    is_wide = is_wide or bool(table.max() > _MAX_UINT16)
    offsets = table.astype(np.uint32 if is_wide else np.uint16)[ids]
    clothes = offsets.view(np.int32 if is_wide else np.int16)
    return LaneFilter(index, values, torch.from_numpy(clothes))


def default_choice(
    weight: SparseWeight, groups: int, vectors: int, max_vectors: tuple[int, int, int], lanes: int, threads: int
) -> ConvChoice:
    """Return a choice by rule of thumb, for layers that were not tuned."""
    out_channels, channels, kernel_h, kernel_w = weight.shape
    rows = 1 if out_channels // groups < 2 else 2
    longest = max_vectors[{1: 0, 2: 1, 4: 2}[rows]]
    return cut(
        rows, longest, vectors, (out_channels // groups, channels, kernel_h, kernel_w), weight.density, lanes, threads
    )


def default_quad_choice(
    weight: SparseWeight, groups: int, vectors: int, max_vectors: tuple[int, int, int], lanes: int, threads: int
) -> ConvChoice:
    """Return a choice for an int8 convolution by rule of thumb; the arguments are `default_choice`'s."""
    out_channels, channels, *kernel = weight.shape
    quads = -(-channels * groups // QUAD)
    longest = native.quad_layout().max_vectors
    choice = cut(QUAD, longest, vectors, (out_channels, quads, kernel[0], kernel[1]), 1.0, lanes, threads)
    return replace(choice, channel_block=min(quads, max_quads_a_block(weight.shape)))


def fit_here(choices: Mapping[str, ConvChoice], graph: Graph) -> bool:
    """Tell whether the kernels of the set in use have tiles and blocks as long as these, by convolutions' names."""
    of_quads = {
        node.name: graph.weights[node.attributes["weight"]].shape
        for node in graph.convolutions()
        if node.op == "quantized_conv2d"
    }
    longest = native.lane_layout()[1]
    return all(
        _fits_quads(choice, of_quads[name]) if name in of_quads else choice.tile_vectors <= longest[choice.rows // 2]
        for name, choice in choices.items()
    )


def _fits_quads(choice: ConvChoice, shape: Sequence[int]) -> bool:
    is_one_block = choice.repeats == 1 or choice.channel_block <= max_quads_a_block(shape)
    return choice.rows == QUAD and choice.tile_vectors <= native.quad_layout().max_vectors and is_one_block


def cut(
    rows: int,
    longest: int,
    vectors: int,
    shape: tuple[int, int, int, int],
    density: float,
    lanes: int,
    threads: int,
    l1_bytes: int = _L1_BYTES,
) -> ConvChoice:
    """Cut a convolution of `shape` [K / groups, C / groups, R, S] for tiles of at most `longest` vectors."""
    out_channels, channels, kernel_h, kernel_w = shape
    tiles = -(-vectors // longest)
    tile_vectors = -(-vectors // tiles)
    bytes_a_channel = kernel_h * (tile_vectors + kernel_w - 1) * lanes * 4
    by_cache = l1_bytes // bytes_a_channel
    by_density = int(_MIN_KEPT_A_BLOCK / max(density * kernel_h * kernel_w, 1e-6))
    channel_block = max(1, min(channels, max(by_cache, by_density)))
    parts = max(1, min(-(-4 * threads // tiles), out_channels // (4 * rows))) if threads > 1 else 1
    return ConvChoice(rows, tile_vectors, channel_block, parts)
