"""Run darknet's own library on one image and save every layer's output; started as a process of its own.

Darknet prints to stdout and ends the process on errors, so it must not share the tests' process.

    python tests/support/darknet_runner.py libdarknet.so net.cfg net.weights image.npy outputs.npz
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np


class Image(ctypes.Structure):
    """Darknet's image struct: data [c, h, w]."""

    _fields_ = (
        ("w", ctypes.c_int),
        ("h", ctypes.c_int),
        ("c", ctypes.c_int),
        ("data", ctypes.POINTER(ctypes.c_float)),
    )


def load_library(path: str) -> ctypes.CDLL:
    darknet = ctypes.CDLL(path)
    darknet.load_network.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int]
    darknet.load_network.restype = ctypes.c_void_p
    darknet.network_predict.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_float)]
    darknet.get_network_image_layer.argtypes = [ctypes.c_void_p, ctypes.c_int]
    darknet.get_network_image_layer.restype = Image
    return darknet


def main(library: str, cfg: str, weights: str, image: str, outputs: str) -> None:
    darknet = load_library(library)
    net = darknet.load_network(cfg.encode(), weights.encode(), 0)
    x = np.ascontiguousarray(np.load(image), dtype=np.float32)
    darknet.network_predict(net, x.ctypes.data_as(ctypes.POINTER(ctypes.c_float)))
    num_layers = sum(line.startswith("[") for line in Path(cfg).read_text().splitlines()) - 1  # without [net]
    layers = {}
    for index in range(num_layers):
        layer = darknet.get_network_image_layer(net, index)
        layers[str(index)] = np.ctypeslib.as_array(layer.data, shape=(layer.c, layer.h, layer.w)).copy()
    np.savez(outputs, **layers)


if __name__ == "__main__":
    main(*sys.argv[1:])
