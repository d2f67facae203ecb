"""Robustness to common corruptions: the corruptions, and what a model's figures under them amount to."""

from prunekit.evaluation.corruptions.catalog import BENCHMARK as BENCHMARK
from prunekit.evaluation.corruptions.catalog import CORRUPTIONS as CORRUPTIONS
from prunekit.evaluation.corruptions.catalog import SEVERITIES as SEVERITIES
from prunekit.evaluation.corruptions.catalog import VALIDATION as VALIDATION
from prunekit.evaluation.corruptions.catalog import Cell as Cell
from prunekit.evaluation.corruptions.catalog import corrupt as corrupt
from prunekit.evaluation.corruptions.catalog import parse_corruptions as parse_corruptions
from prunekit.evaluation.corruptions.catalog import register_corruption as register_corruption
