"""Where frames come from: a video file, a folder of images in the order of their names, a camera or a stream."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from prunekit.detection.coco_fields import UnusableError
from prunekit.detection.image_files import read_header, read_image
from prunekit.errors import InputError, first_line
from prunekit.extras import MissingExtraError, check_extra
from prunekit.kept_images import Pixels

CAMERA = "camera:"
#: Frames a second of a folder, and of a source that does not say.
USUAL_RATE = Fraction(25)
_STREAMS = ("rtsp://", "rtmp://", "http://", "https://", "udp://")
_IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
_CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}


@dataclass(frozen=True)
class Frame:
    """One picture: RGB uint8 [H, W, 3], its number in the source, and when it was there, by `time.perf_counter`."""

    number: int
    pixels: Pixels
    arrived: float


class Source(Protocol):
    """Gives frames once."""

    @property
    def rate(self) -> Fraction:
        """Frames a second."""

    @property
    def is_live(self) -> bool:
        """Whether frames come whether or not anybody is ready for them."""

    def frames(self) -> Iterator[Frame]:
        """Yield the frames; InputError where one cannot be read."""


@dataclass(frozen=True)
class Folder:
    """Images as frames."""

    path: Path
    rate: Fraction = USUAL_RATE
    is_live: bool = False

    @property
    def count(self) -> int:
        """The number of frames."""
        return len(self.files())

    def files(self) -> list[Path]:
        """Return the images in the order of their names."""
        return sorted(path for path in self.path.iterdir() if path.suffix.lower() in _IMAGES)

    def frames(self) -> Iterator[Frame]:
        """Yield each image."""
        for number, path in enumerate(self.files()):
            try:
                width, height = read_header(path, None).displayed_size
            except UnusableError as error:
                raise InputError(f"--source: expected an image, but {path} {error.reason}.") from None
            yield Frame(number, np.asarray(read_image(path, width, height, upright=True)), time.perf_counter())


@dataclass
class Video:
    """What PyAV has opened: a file, a camera or a stream."""

    container: Any
    name: str
    is_live: bool
    _stream: Any = field(init=False)

    def __post_init__(self) -> None:
        if not self.container.streams.video:
            raise InputError(f"--source: expected a video, but there is none in {self.name}.")
        self._stream = self.container.streams.video[0]
        self._stream.thread_type = "AUTO"

    @property
    def rate(self) -> Fraction:
        """What the source says, if it does."""
        return Fraction(self._stream.average_rate or self._stream.guessed_rate or USUAL_RATE)

    @property
    def count(self) -> int:
        """The number of frames, as far as the source says it; 0 where it does not."""
        return int(self._stream.frames)

    def frames(self) -> Iterator[Frame]:
        """Yield the frames of the first video stream."""
        import av

        with self.container:
            number = 0
            try:
                for number, frame in enumerate(self.container.decode(self._stream)):
                    yield Frame(number, frame.to_ndarray(format="rgb24"), time.perf_counter())
            except av.FFmpegError as error:
                raise InputError(
                    f"--source: expected a whole video, but {self.name} is damaged after frame {number} "
                    f"({first_line(error)})."
                ) from None


def open_source(text: str) -> Source:
    """Open a source.

    Args:
        text: A file, a folder, "camera:0" or a stream's address.

    Raises:
        InputError: When there is none, it is damaged, or the extra "video" is not installed.
    """
    path = Path(text)
    if text and path.is_dir():
        folder = Folder(path)
        if not folder.files():
            raise InputError(f"--source: expected images ({', '.join(sorted(_IMAGES))}) in {path}, got none.")
        return folder
    require_video()
    if text.startswith(CAMERA):
        return _camera(text.removeprefix(CAMERA))
    is_stream = text.startswith(_STREAMS)
    if not is_stream and not path.is_file():
        raise InputError(
            f"--source: expected a video file, a folder of images or {CAMERA}0, but {text or repr(text)} is none."
        )
    if not is_stream and path.stat().st_size == 0:
        raise InputError(f"--source: expected a video, but {text} is empty.")
    return Video(_opened(text, "a video", None), text, is_stream)


def require_video() -> None:
    """Raise InputError unless the extra "video" is installed."""
    try:
        check_extra("video", "reading and writing video")
    except MissingExtraError as error:
        raise InputError(str(error)) from None


def _camera(number: str) -> Video:
    kind, pattern = _CAMERAS.get(sys.platform, _CAMERAS["linux"])
    return Video(_opened(pattern.format(number), "a camera", kind), f"{CAMERA}{number}", is_live=True)


def _opened(name: str, what: str, kind: str | None) -> Any:
    import av

    try:
        return av.open(name, format=kind)
    except (av.FFmpegError, OSError, ValueError) as error:
        found = first_line(error)
        raise InputError(f"--source: expected {what}, but {name} cannot be opened ({found}).") from None
