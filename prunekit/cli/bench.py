"""`prunekit bench`: whole nets, layers, and the plot of both."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from prunekit.benchmark import NETS, Row, Settings, read_rows, run_bench
from prunekit.benchmark.peers import FLOAT32_PEERS, PEERS
from prunekit.benchmark.plot import write_plot
from prunekit.benchmark.problems import RATIOS, UNSTRUCTURED
from prunekit.benchmark.rows import Question, to_lines
from prunekit.benchmark.settings import QUICK_RATIOS, QUICK_RUNS, RUNS, split
from prunekit.benchmark.summary import curves, table
from prunekit.benchmark.verdict import verdict
from prunekit.cli.ending import Verbose, error_console, out_console, tell, user_errors
from prunekit.console import ConsoleProgress
from prunekit.errors import InputError
from prunekit.prune.blocks import BLOCKS

_AGAIN = """With --out, rows are appended to the file, and rows that it already has are not measured again. Without it,
rows go to standard output. Every engine's outputs are checked before it is timed."""

END_TO_END_EXAMPLES = f"""
Examples:

  prunekit bench end-to-end --models yolov3 --threads 1,2 --out rows.jsonl

  prunekit bench end-to-end --models yolov3-tiny --quick --peers folded,compile

  prunekit bench end-to-end --models yolov3,resnet50,vgg16 --memory --out rows.jsonl

  prunekit bench end-to-end --peers compile,openvino,compile-bf16,openvino-bf16,openvino-int8 --out rows.jsonl

  prunekit bench end-to-end --structure block1x4 --peers openvino,openvino-int8 --out rows.jsonl

{_AGAIN}
"""

LAYERS_EXAMPLES = f"""
Examples:

  prunekit bench layers --threads 1 --out rows.jsonl

  prunekit bench layers --models resnet50 --ratios 75,90 --peers folded,onnxruntime --out rows.jsonl

{_AGAIN}
"""

PLOT_EXAMPLES = """
Examples:

  prunekit bench plot rows.jsonl --out speedup.png

  prunekit bench plot one-machine.jsonl another.jsonl --out speedup.svg
"""

_USUAL_PEERS = ",".join(FLOAT32_PEERS)

bench_app = typer.Typer(
    help="Benchmark pruned networks and layers against dense engines, as JSON lines, and plot the results.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Models = Annotated[str, typer.Option(help=f"networks, comma-separated: {', '.join(NETS)}")]
Threads = Annotated[
    str | None, typer.Option(help="thread counts, comma-separated, each measured separately (default: torch's choice)")
]
Ratios = Annotated[
    str | None,
    typer.Option(
        help=f"pruning ratios in percent (default: {','.join(f'{r:g}' for r in RATIOS)}; "
        f"{','.join(f'{r:g}' for r in QUICK_RATIOS)} with --quick)"
    ),
]
Peers = Annotated[
    str,
    typer.Option(
        help=f"dense engines to compare with, comma-separated: {', '.join(PEERS)}; torch eager is always included, and "
        "those in bfloat16 and int8 are timed only if you ask for them"
    ),
]
Runs = Annotated[int | None, typer.Option(help=f"timed runs of each engine ({QUICK_RUNS} with --quick)")]
Width = Annotated[float, typer.Option(help="width multiplier of the networks")]
ImageSize = Annotated[
    int | None, typer.Option(help="image size in pixels (default: 416 for detectors, 224 for classifiers)")
]
Out = Annotated[Path | None, typer.Option(help="JSON lines file to append to")]
Memory = Annotated[
    bool, typer.Option("--memory", help="of whole networks, also measure each engine's memory, in a separate process")
]
Structure = Annotated[str, typer.Option(help=f"what of a layer's weights is pruned together: {', '.join(BLOCKS)}")]
Quick = Annotated[bool, typer.Option("--quick", help="fewer runs, and three ratios only")]


def bench_command(
    context: typer.Context,
    models: Models = "yolov3",
    threads: Threads = None,
    ratios: Ratios = None,
    peers: Peers = _USUAL_PEERS,
    runs: Runs = None,
    width: Width = 1.0,
    image_size: ImageSize = None,
    memory: Memory = False,
    structure: Structure = UNSTRUCTURED,
    quick: Quick = False,
    out: Out = None,
    verbose: Verbose = False,
) -> None:
    """Time the question that the command is called after."""
    question: Question = "layers" if context.info_name == "layers" else "end-to-end"
    with user_errors(verbose):
        settings = Settings(
            question,
            models=split("--models", models, str),
            threads=(torch.get_num_threads(),) if threads is None else split("--threads", threads, int),
            ratios=(QUICK_RATIOS if quick else RATIOS) if ratios is None else split("--ratios", ratios, float),
            peers=split("--peers", peers, str),
            runs=(QUICK_RUNS if quick else RUNS[question]) if runs is None else runs,
            width=width,
            image_size=image_size,
            memory=memory,
            structure=structure,
        )
        with ConsoleProgress(error_console) as progress:
            rows = run_bench(settings, out, progress)
        if out is None:
            sys.stdout.write(to_lines(rows))
            return
        for curve in curves(rows):
            out_console.print(table(curve))
            for sentence in verdict(curve):
                tell(sentence)
        tell(f"Rows: {out}")


bench_app.command(
    "end-to-end",
    epilog=END_TO_END_EXAMPLES,
    help="Time whole networks, pruned at each ratio and accelerated, interleaved with dense engines.",
)(bench_command)
bench_app.command(
    "layers",
    epilog=LAYERS_EXAMPLES,
    help="Time each distinct convolution of a network on its real input, interleaved with dense engines.",
)(bench_command)


@bench_app.command("plot", epilog=PLOT_EXAMPLES)
def plot_command(
    files: Annotated[list[Path], typer.Argument(help="JSON lines files written by the other two commands")],
    out: Annotated[Path, typer.Option(help="output image, .png or .svg")] = Path("speedup.png"),
    verbose: Verbose = False,
) -> None:
    """Plot speedup against sparsity, with the limit 1 / (1 − s) and the machine's roofline."""
    with user_errors(verbose):
        rows: list[Row] = []
        for file in files:
            if not file.exists():
                raise InputError(f"Expected a file of prunekit bench's rows, got nothing at {file}.")
            rows += read_rows(file)
        write_plot(rows, out)
        tell(f"Written: {out}")
