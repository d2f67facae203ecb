"""Frames with their boxes, as a video file."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from prunekit.errors import InputError, first_line
from prunekit.kept_images import Pixels

#: The encoders that files are written by, the first that this FFmpeg has: H.264 plays everywhere.
ENCODERS = ("libx264", "libopenh264", "mpeg4")


class VideoWriter:
    """Writes frames of one size; a context manager, after which the file can be played whatever ended the block."""

    def __init__(self, path: Path, rate: Fraction) -> None:
        import av

        self._path, self._rate, self._stream = path, rate, None
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._container: Any = av.open(str(path), "w")
        except (av.FFmpegError, OSError, ValueError) as error:
            raise InputError(
                f"--out: expected a place for a video such as out.mp4, but {path} cannot be written "
                f"({first_line(error)})."
            ) from None

    def __enter__(self) -> VideoWriter:
        return self

    def write(self, pixels: Pixels) -> None:
        """Append a frame, RGB uint8 [H, W, 3]; one of another size than the first is resized to it."""
        import av

        stream = self._stream or self._started(pixels)
        size = (stream.width, stream.height)
        if (pixels.shape[1], pixels.shape[0]) != size:
            pixels = np.asarray(Image.fromarray(pixels).resize(size))
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        self._container.mux(stream.encode(frame))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._container:
            if self._stream is not None:
                self._container.mux(self._stream.encode(None))

    def _started(self, pixels: Pixels) -> Any:
        """Add the stream once the first frame says its size; sides are even, as the colors' resolution is halved."""
        import av

        codec = next(name for name in ENCODERS if name in av.codecs_available)
        self._stream = stream = self._container.add_stream(codec, rate=self._rate)
        stream.height, stream.width = (max(2, side - side % 2) for side in pixels.shape[:2])
        stream.pix_fmt = "yuv420p"
        return stream
