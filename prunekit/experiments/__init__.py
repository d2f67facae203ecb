"""Many runs: plans of them, where they are done, and what their numbers say together."""

from prunekit.extras import check_extra

check_extra("study", "prunekit.experiments")

from prunekit.experiments.comparisons import Comparison, Point, compare
from prunekit.experiments.estimate import estimate_seconds
from prunekit.experiments.experiment import Standing, describe_plan, do_experiment, settle_plan, standings
from prunekit.experiments.local_pool import LocalPool
from prunekit.experiments.measured import measured_values
from prunekit.experiments.plan import PRESETS, Job, Plan, plan_jobs, preset, read_plan
from prunekit.experiments.values import Values, read_values

__all__ = [
    "PRESETS",
    "Comparison",
    "Job",
    "LocalPool",
    "Plan",
    "Point",
    "Standing",
    "Values",
    "compare",
    "describe_plan",
    "do_experiment",
    "estimate_seconds",
    "measured_values",
    "plan_jobs",
    "preset",
    "read_plan",
    "read_values",
    "settle_plan",
    "standings",
]
