"""Filters removed for good, exported to ONNX, and run by ONNX Runtime: smaller and faster in any engine.

Needs onnx, onnxscript and onnxruntime: pip install 'prunekit[peers]'.
"""

import argparse
import tempfile
from pathlib import Path

import onnxruntime
import torch

import prunekit
from prunekit.classification import resnet20
from prunekit.compaction import export
from prunekit.prune import MaskRule, channel_groups, score_model


def main() -> None:
    """Mask half of the filters, compact, export, and compare the outputs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratio", type=float, default=50, help="percent of the filters to remove")
    options = parser.parse_args()
    torch.manual_seed(0)

    model = resnet20().eval()
    x = torch.rand(1, 3, 32, 32)
    groups = channel_groups(model, x)  # filters that residual additions tie together go together
    masks = MaskRule(options.ratio, "filter", groups=groups)(score_model(model, "scaled"))

    result = prunekit.compact(model, x, masks)
    certificate = result.certificate
    print(f"{certificate.parameters_before:,} parameters before, {certificate.parameters_after:,} after")

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "small.onnx"
        export(result.model, [x], "onnx", path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        difference = (torch.from_numpy(y) - result.model(x)).abs().max()
        print(f"{path.name} is {path.stat().st_size / 1e3:.0f} kB; ONNX Runtime differs by {difference:.1e}")


if __name__ == "__main__":
    main()
