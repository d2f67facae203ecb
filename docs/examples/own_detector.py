"""A detector for one's own classes from COCO's weights: fine-tuned robustly, pruned, attacked and timed.

--data takes COCO's, YOLO's or Pascal VOC's layout; without it images of three shapes are rendered. --weights takes
darknet's yolov3-tiny.weights, whose heads are for 80 classes: all other layers are taken, the heads are made anew.
"""

import argparse
from pathlib import Path

from prunekit.detection import render_shapes_dataset
from prunekit.pipeline import make_config, read_rows, run
from prunekit.report import write_report


def main() -> None:
    """Run the pipeline, and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, help="yolov3-tiny.weights (default: from scratch)")
    parser.add_argument("--data", type=Path, help="images and boxes (default: rendered)")
    parser.add_argument("--out", type=Path, default=Path("runs/own-detector"), help="folder of the run")
    parser.add_argument("--epochs", type=int, default=2, help="of adversarial training")
    parser.add_argument("--images", type=int, default=120, help="to render")
    parser.add_argument("--image-size", type=int, default=160, help="of the network's input, in pixels")
    parser.add_argument("--width", type=float, default=1.0, help="channels; 1 fits the published weights")
    options = parser.parse_args()

    data = options.data or options.out / "data"
    if options.data is None:
        render_shapes_dataset(data, options.images, options.image_size)
    config = make_config(
        model="yolov3-tiny",
        width=options.width,
        weights=options.weights,
        data=data,
        train_data=data,  # for real figures: images that the evaluation does not look at
        image_size=options.image_size,
        out=options.out / "run",
        ratios=(0, 50, 90),
        pretrain_epochs=options.epochs,
        finetune_epochs=1,
        attack="paper",
        threads=1,
    )
    folder = run(config)
    for row in read_rows(folder.results):
        ratio, clean, attacked = float(row["ratio"]), float(row["ap50"] or 0), float(row["attacked_ap50"] or 0)
        name = f"{ratio:.0f} % {row['pruning']}"  # "as given": the weights of the file, before they are trained
        print(f"{name}: AP50 {clean:.3f}, attacked {attacked:.3f}, {float(row['latency_ms']):.1f} ms")
    print(f"Report: {write_report(folder).name}")


if __name__ == "__main__":
    main()
