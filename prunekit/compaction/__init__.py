"""Exact channel compaction: structured masks in, a certified smaller model out."""

from prunekit.compaction.certificate import Certificate, ChannelGroup, Difference
from prunekit.compaction.compact import CompactionResult, compact
from prunekit.compaction.exports import EXPORTS, export
from prunekit.compaction.optimizers import carry_optimizer
from prunekit.compaction.rounding import MULTIPLES
from prunekit.compaction.saving import load, save

__all__ = [
    "EXPORTS",
    "MULTIPLES",
    "Certificate",
    "ChannelGroup",
    "CompactionResult",
    "Difference",
    "carry_optimizer",
    "compact",
    "export",
    "load",
    "save",
]
