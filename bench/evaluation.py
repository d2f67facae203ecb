"""Where does an evaluation's time go? Reading, network, decoding and suppression of one image, in turn.

    python -m bench.evaluation --model yolov3 --threads 2 >> rows.jsonl

Decoding and suppression get outputs in which every box passes the score threshold in one class, 10 647 boxes for
YOLOv3 at 416×416. The image is a rendered JPEG. `post_share` is decoding's and suppression's share of the four; attacks
only make it smaller.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.scripts import Row, begin, command_line, print_row
from prunekit.detection import CocoDataset, DetectionTask, render_shapes_dataset
from prunekit.task import ModelSpec, models
from prunekit.timing import time_in_turn

NUM_CLASSES = 80
FILE_SIDE = 640  # of the JPEG, in pixels


@dataclass(frozen=True)
class Thresholds:
    """What suppression is told."""

    score_threshold: float = 0.001
    iou_threshold: float = 0.45
    max_detections: int = 300
    max_candidates: int | None = None


OPTIONS = Thresholds()


def main() -> None:
    """Print JSON lines: the environment, then the stages' milliseconds."""
    parser = command_line(__doc__)
    parser.add_argument("--model", choices=models(), default="yolov3")
    parser.add_argument("--image-size", type=int, default=416)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    begin(arguments.threads)
    print_row(measure(arguments.model, arguments.image_size, arguments.runs))


def measure(name: str, image_size: int, runs: int) -> Row:
    """Time each stage of one image's evaluation."""
    torch.manual_seed(0)
    task = DetectionTask(ModelSpec(name, {"num_classes": NUM_CLASSES}))
    model = task.spec.build().eval()
    with tempfile.TemporaryDirectory() as folder:
        render_shapes_dataset(folder, num_images=1, image_size=FILE_SIDE)
        dataset = CocoDataset.open(folder, image_size)
        x = dataset[0].image[None]
        outputs = busy_outputs(task, model, x)
        steps = task.postprocessing(outputs, OPTIONS)
        timings = time_in_turn({"read": lambda: dataset[0], "network": lambda: model(x), **steps}, runs)
        boxes, scores = task.decode(outputs)
    ms = {stage: timing.median_ms for stage, timing in timings.items()}
    return {
        "model": name,
        "image_size": image_size,
        "boxes": boxes.shape[1],
        "candidates": int((scores > OPTIONS.score_threshold).sum()),
        **{f"{stage}_ms": value for stage, value in ms.items()},
        "post_share": (ms["decode"] + ms["nms"]) / sum(ms.values()),
    }


@torch.no_grad()
def busy_outputs(task: DetectionTask, model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return raw logits like the model's for x, in which every box scores about 0.02 in one class of its own."""
    outputs = [torch.randn_like(logits) for logits in model(x)]
    for cells, _, _ in task.heads.cells(outputs):  # views [1, A, H, W, 5+C]
        cells[..., 4] -= 3
        cells[..., 5:] = -9
        label = torch.randint(NUM_CLASSES, cells.shape[:4])
        cells[..., 5:].scatter_(-1, label[..., None], 0.0)
    return outputs


if __name__ == "__main__":
    main()
