"""The command line: the stages one by one, all in order, compaction, conversion, demo, doctor, explanations."""

from __future__ import annotations

from typing import Annotated

import typer

from prunekit.cli import run_commands, stage_commands
from prunekit.cli.bench import bench_app
from prunekit.cli.compact import COMPACT_EXAMPLES, compact_command
from prunekit.cli.convert import CONVERT_EXAMPLES, convert_command
from prunekit.cli.ending import out_console
from prunekit.cli.experiment import EXPERIMENT_EXAMPLES, experiment_command
from prunekit.cli.explain import EXPLAIN_EXAMPLES, explain_command
from prunekit.cli.old_spellings import RespellingGroup
from prunekit.cli.statistics import STATISTICS_EXAMPLES, statistics_command
from prunekit.cli.watch import WATCH_EXAMPLES, watch_command
from prunekit.environment import installed_version

__all__ = ["app", "main"]

app = typer.Typer(
    cls=RespellingGroup,
    help="Prune detectors, evaluate them under attack, accelerate them, and measure the results.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("run", epilog=run_commands.RUN_EXAMPLES)(run_commands.run_command)
app.command("train", epilog=stage_commands.TRAIN_EXAMPLES)(stage_commands.train_command)
app.command("score", epilog=stage_commands.SCORE_EXAMPLES)(stage_commands.score_command)
app.command("sensitivity", epilog=stage_commands.SENSITIVITY_EXAMPLES)(stage_commands.sensitivity_command)
app.command("prune", epilog=stage_commands.PRUNE_EXAMPLES)(stage_commands.prune_command)
app.command("mrpf", epilog=stage_commands.MRPF_EXAMPLES)(stage_commands.mrpf_command)
app.command("finetune", epilog=stage_commands.FINETUNE_EXAMPLES)(stage_commands.finetune_command)
app.command("evaluate", epilog=stage_commands.EVALUATE_EXAMPLES)(stage_commands.evaluate_command)
app.command("watch", epilog=WATCH_EXAMPLES)(watch_command)
app.command("compact", epilog=COMPACT_EXAMPLES)(compact_command)
app.command("convert", epilog=CONVERT_EXAMPLES)(convert_command)
app.command("explain", epilog=EXPLAIN_EXAMPLES)(explain_command)
app.command("experiment", epilog=EXPERIMENT_EXAMPLES)(experiment_command)
app.command("statistics", epilog=STATISTICS_EXAMPLES)(statistics_command)
app.add_typer(bench_app, name="bench")
app.command("report")(run_commands.report_command)
app.command("demo")(run_commands.demo_command)
app.command("doctor")(run_commands.doctor_command)


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        out_console.print(f"prunekit {installed_version('prunekit')}", highlight=False)
        raise typer.Exit


def main() -> None:
    """Run the command line."""
    app()
