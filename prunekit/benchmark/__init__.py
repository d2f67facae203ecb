"""The measuring room: pruned nets and layers against dense engines, in turn, checked, as JSON lines."""

from prunekit.extras import check_extra

check_extra("study", "prunekit.benchmark")

from prunekit.benchmark.measure import run_bench
from prunekit.benchmark.problems import NETS, RATIOS
from prunekit.benchmark.rows import Row, append_rows, read_rows
from prunekit.benchmark.settings import Settings

__all__ = ["NETS", "RATIOS", "Row", "Settings", "append_rows", "read_rows", "run_bench"]
