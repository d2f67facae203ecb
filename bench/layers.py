"""At which sparsity does the packed convolution beat the fastest dense engine, layer shape by layer shape?

    python -m bench.layers --models yolov3 --threads 1 --out rows.jsonl

The same as `prunekit bench layers`.
"""

from __future__ import annotations

import sys

from prunekit.cli import app

if __name__ == "__main__":
    app(["bench", "layers", *sys.argv[1:]])
