"""How much faster is an unstructured-pruned net than the fastest dense engine, at each pruning ratio?

    python -m bench.end_to_end --models yolov3 --threads 1,2 --out rows.jsonl

The same as `prunekit bench end-to-end`.
"""

from __future__ import annotations

import sys

from prunekit.cli import app

if __name__ == "__main__":
    app(["bench", "end-to-end", *sys.argv[1:]])
