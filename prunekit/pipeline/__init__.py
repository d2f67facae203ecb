"""The pipeline: checked configurations, resumable run folders, and the stages that fill them."""

from prunekit.extras import check_extra

check_extra("study", "prunekit.pipeline")

from prunekit.evaluation.latency import Latency, measure_latency
from prunekit.pipeline.config import RunConfig, make_config, parse_ratios
from prunekit.pipeline.results import RatioResult, read_rows
from prunekit.pipeline.run import run
from prunekit.pipeline.run_folder import RunFolder
from prunekit.progress import Progress, SilentProgress

__all__ = [
    "Latency",
    "Progress",
    "RatioResult",
    "RunConfig",
    "RunFolder",
    "SilentProgress",
    "make_config",
    "measure_latency",
    "parse_ratios",
    "read_rows",
    "run",
]
