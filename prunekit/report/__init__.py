"""Reports on a run folder, built from its files alone: plots, pictures with boxes, one HTML page."""

from prunekit.extras import check_extra

check_extra("study", "prunekit.report")

from prunekit.report.allocation_plots import write_rounds_plot, write_sensitivity_plot
from prunekit.report.corruption_plots import write_corruption_plots
from prunekit.report.evaluation_page import write_evaluation_page
from prunekit.report.mlflow_export import send_to_mlflow
from prunekit.report.page import DENSE, write_report
from prunekit.report.plots import Row, variants, write_plots
from prunekit.report.run_comparison import write_run_comparison
from prunekit.report.statistics_page import write_statistics

__all__ = [
    "DENSE",
    "Row",
    "send_to_mlflow",
    "variants",
    "write_corruption_plots",
    "write_evaluation_page",
    "write_plots",
    "write_report",
    "write_rounds_plot",
    "write_run_comparison",
    "write_sensitivity_plot",
    "write_statistics",
]
