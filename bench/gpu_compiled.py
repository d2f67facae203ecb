"""How long does torch.compile's version of a net take on this GPU? A process of its own, so that it can be ended.

    python -m bench.gpu_compiled --net yolov3 --image-size 416 --dtype float16 [--format channels-last] [--width 1.0]

Prints the median milliseconds of one image, or an error. Compiling takes a minute or more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from bench.gpu_nets import DTYPES, FORMATS, allow_tf32, median_ms
from bench.scripts import command_line
from prunekit.benchmark.problems import pruned_net, random_image


def main() -> None:
    """Compile, time and print."""
    parser = command_line(__doc__)
    parser.add_argument("--net", required=True)
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--dtype", choices=sorted(DTYPES), required=True)
    parser.add_argument("--format", choices=sorted(FORMATS), default="channels-last")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    memory_format, dtype = FORMATS[options.format], DTYPES[options.dtype]
    net = pruned_net(options.net, 0.0, options.width).to(options.device)
    net = net.to(dtype=dtype, memory_format=memory_format)  # type: ignore[call-overload]
    x = random_image(options.image_size).to(options.device, dtype).contiguous(memory_format=memory_format)
    compiled: Callable[[Tensor], object] = torch.compile(net, mode="reduce-overhead" if x.is_cuda else None)
    with allow_tf32(False):
        sys.stdout.write(f"{median_ms(lambda: compiled(x), x)}\n")


if __name__ == "__main__":
    main()
