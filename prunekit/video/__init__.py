"""A detector on video: frames of files, folders and cameras, their boxes drawn and written, and how long that takes."""

from prunekit.extras import check_extra

check_extra("study", "prunekit.video")

from prunekit.video.channels import Channel
from prunekit.video.sources import Frame, Source, open_source
from prunekit.video.watching import FrameBoxes, Watched, WatchOptions, watch

__all__ = ["Channel", "Frame", "FrameBoxes", "Source", "WatchOptions", "Watched", "open_source", "watch"]
