"""Exact channel compaction: structured masks in, a certified smaller model out."""

from prunekit.compaction.certificate import Certificate, ChannelGroup, Difference
from prunekit.compaction.compact import CompactionResult, compact
from prunekit.compaction.exports import EXPORTS, export
from prunekit.compaction.files import load, save
from prunekit.compaction.optimizers import carry_optimizer
from prunekit.compaction.permutation import PermutationResult, permute_channels
from prunekit.compaction.rounding import MULTIPLES

__all__ = [
    "EXPORTS",
    "MULTIPLES",
    "Certificate",
    "ChannelGroup",
    "CompactionResult",
    "Difference",
    "PermutationResult",
    "carry_optimizer",
    "compact",
    "export",
    "load",
    "permute_channels",
    "save",
]
