"""The demo: images that are rendered, a detector, and the five steps on both.

The detector is the one that is shipped with the package, trained robustly beforehand; where the package lacks it, a
smaller one is trained first.
"""

from prunekit.demo.config import ONE_CORE, TWO_IDLE_CORES, DemoConfig, Pace
from prunekit.demo.running import main_job, next_steps, prepare_demo, run_demo

__all__ = [
    "ONE_CORE",
    "TWO_IDLE_CORES",
    "DemoConfig",
    "Pace",
    "main_job",
    "next_steps",
    "prepare_demo",
    "run_demo",
]
