"""HYDRA on CIFAR-10 (Sehwag et al. 2020): robust training, scores optimized under attack, robust fine-tuning.

--data takes CIFAR-10's binary version or folders train/CLASS/ and test/CLASS/. The published schedule is
--pretrain-epochs 100 --optimize-epochs 20 --finetune-epochs 100, which wants a GPU (--device cuda).
"""

import argparse
from pathlib import Path

from prunekit.pipeline import make_config, read_rows, run


def main() -> None:
    """Run the recipe at one ratio, against one-shot pruning of the same weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10")
    parser.add_argument("--out", type=Path, default=Path("runs/hydra"), help="folder of the run")
    parser.add_argument("--width", type=float, default=0.5, help="channels relative to ResNet-20's")
    parser.add_argument("--train-limit", type=int, default=1000, help="images that are learned from")
    parser.add_argument("--limit", type=int, default=200, help="images that are evaluated")
    parser.add_argument("--pretrain-epochs", type=int, default=3)
    parser.add_argument("--optimize-epochs", type=int, default=1)
    parser.add_argument("--finetune-epochs", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    config = make_config(
        recipe="hydra",  # PGD-10 of eps 8/255 in training; SGD, cosine; scaled scores, straight-through
        model="resnet20",
        width=options.width,
        data=options.data,
        train_data=options.data,
        train_limit=options.train_limit,
        limit=options.limit,
        out=options.out,
        ratios=(0, 90),
        scores=("scaled",),
        pruning=("one-shot", "optimized"),
        pretrain_epochs=options.pretrain_epochs,
        optimize_epochs=options.optimize_epochs,
        finetune_epochs=options.finetune_epochs,
        attack="pgd20",
        device=options.device,
        threads=1,
    )
    folder = run(config)
    rows = read_rows(folder.results)
    for row in [rows[0], *(row for row in rows if float(row["ratio"]))]:  # each variant repeats ratio 0
        name = f"{float(row['ratio']):.0f} % {row['pruning']}" if float(row["ratio"]) else "unpruned"
        print(f"{name}: accuracy {float(row['accuracy']):.3f}, attacked {float(row['attacked_accuracy']):.3f}")


if __name__ == "__main__":
    main()
