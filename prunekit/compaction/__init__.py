"""Exact channel compaction: structured masks in, a certified smaller model out."""

from prunekit.compaction.certificate import Certificate, ChannelGroup, Difference
from prunekit.compaction.compact import MULTIPLES, CompactionResult, compact

__all__ = ["MULTIPLES", "Certificate", "ChannelGroup", "CompactionResult", "Difference", "compact"]
