"""A folder of clips; the first folder below it, where there is one, is a clip's class.

A clip is a video file, or a folder that holds image files and nothing else: its frames, in the order of the
numbers in their names.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from jaxtyping import UInt8
from PIL import Image

from prisma_steps.data.files import BrokenFile, Files, files_source, names_below
from prisma_steps.data.image_folder import ImageFile, is_image_name, middle_square
from prisma_steps.data.source import ImageSource
from prisma_steps.step import StepError

#: Endings of the names of video files.
VIDEOS = (".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


def source(folder: str, size: int, n_frames: int, frame_stride: int, threads: int = 1) -> ImageSource:
    """The clips of a folder, in the order of their paths, as RGB frames of ``size`` × ``size``.

    Of each clip, ``n_frames`` frames are taken, ``frame_stride`` apart, as many of its frames left out before
    them as after (one more after, if the number is odd). Frames are turned upright, resized and cut as in
    ``image_folder``. Ids are paths below the folder: of the file, or of the folder with the frames.

    Raises:
        StepError: when the folder is missing or holds no clip, when a link leads out of it, when it cannot
            be told what its clips are, when some lie in class folders and others do not, and, as frames are
            read, for clips that are too short or cannot be decoded.
    """
    root = Path(folder)
    names = sorted(_clips(names_below(root, ClipFile.dataset)))
    if not names:
        raise StepError(
            f"video_folder: no clip in {folder!r}: it must hold video files, or a folder of frames for each."
        )
    return files_source(Files(root, names, ClipFile(size, n_frames, frame_stride), threads), "clips")


def _clips(names: Sequence[str]) -> Iterator[str]:
    """The video files, and the folders of frames, among the files of a folder."""
    frames: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if is_video_name(name):
            yield name
        elif is_image_name(name):
            frames[name.rpartition("/")[0]].append(name)
        else:
            raise StepError(
                f"video_folder: {name!r} is neither a video ({', '.join(VIDEOS)}) nor the image of a frame: "
                "remove it from the folder."
            )
    for name in names:
        beside = _holding_frames(name, frames)
        if beside is not None:
            raise StepError(
                f"video_folder: {beside or '.'!r} holds frames ({frames[beside][0]!r}) beside "
                f"{name!r}. A folder of frames is one clip and holds nothing else: put the frames of each "
                "clip into a folder of their own."
            )
    if "" in frames:
        raise StepError(
            f"video_folder: frames ({frames[''][0]!r}) lie in the folder itself: put the frames of each clip "
            "into a folder of their own."
        )
    yield from frames


def _holding_frames(name: str, frames: Iterable[str]) -> str | None:
    """A folder of frames that also holds this file, not being one of its frames."""
    parents = [str(parent) if str(parent) != "." else "" for parent in PurePosixPath(name).parents]
    own = [] if is_video_name(name) else parents[:1]
    return next((parent for parent in parents if parent in frames and parent not in own), None)


def is_video_name(name: str) -> bool:
    """Whether the ending of a file's name is that of a video format."""
    return PurePosixPath(name).suffix.lower() in VIDEOS


@dataclass(frozen=True)
class ClipFile:
    """How a clip is read."""

    size: int
    n_frames: int
    frame_stride: int
    dataset: ClassVar[str] = "video_folder"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(frame, channel, row, column)."""
        return (self.n_frames, 3, self.size, self.size)

    def read(self, path: Path) -> UInt8[np.ndarray, "frame channel row column"]:
        """The clip's chosen frames."""
        return self._read_folder(path) if path.is_dir() else self._read_video(path)

    def _chosen(self, length: int) -> range:
        """Numbers of the frames to take from a clip of so many."""
        span = (self.n_frames - 1) * self.frame_stride + 1
        if length < span:
            raise BrokenFile(
                f"too short: it has {length} frames, and {self.n_frames} frames {self.frame_stride} apart "
                f"need {span}"
            )
        first = (length - span) // 2
        return range(first, first + span, self.frame_stride)

    def _read_folder(self, folder: Path) -> UInt8[np.ndarray, "frame channel row column"]:
        names = sorted((name.name for name in folder.iterdir() if name.name[0] != "."), key=_in_order)
        image, frames = ImageFile(self.size), []
        for number in self._chosen(len(names)):
            try:
                frames.append(image.read(folder / names[number]))
            except BrokenFile as error:
                raise BrokenFile(f"{names[number]}: {error}") from error
        return np.stack(frames)

    def _read_video(self, file: Path) -> UInt8[np.ndarray, "frame channel row column"]:
        try:
            with av.open(str(file)) as container:
                if not container.streams.video:
                    raise BrokenFile("it holds no video")
                packets = _packets(container)
                times = [packets.times[number] for number in self._chosen(len(packets.times))]
                container.seek(packets.key_before(times[0]), stream=container.streams.video[0])
                return np.stack([middle_square(frame, self.size) for frame in _frames(container, times)])
        except (FFmpegError, OSError) as error:
            raise BrokenFile(error.strerror or "it cannot be decoded") from error


def _in_order(name: str) -> list[str | int]:
    """Sorts names by the numbers in them: frame 2 before frame 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name)]


@dataclass(frozen=True)
class _Packets:
    """What a video's packets tell, none of them decoded.

    Attributes:
        times: when each frame is shown, in their order.
        keys: (time shown, time decoded) of the frames that need no other.
    """

    times: list[int]
    keys: list[tuple[int, int]]

    def key_before(self, time: int) -> int:
        """Where to seek, so that decoding from there gives the frame of ``time`` whole.

        A key frame that is *decoded* before it may be *shown* after it, and not do.
        """
        before = [key for key in self.keys if key[0] <= time]
        if not before:
            raise BrokenFile("it does not begin with a key frame")
        return max(before)[1]


def _packets(container: InputContainer) -> _Packets:
    times, keys = [], []
    for packet in container.demux(video=0):
        if not packet.size:  # the last one, which only flushes the decoder
            continue
        if packet.pts is None:
            raise BrokenFile("it has no time stamps; convert it first: ffmpeg -i FILE -c copy FILE.mkv")
        if packet.is_keyframe:
            keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
        if not packet.is_discard:
            times.append(packet.pts)
    return _Packets(sorted(times), keys)


def _frames(container: InputContainer, times: Sequence[int]) -> Iterator[Image.Image]:
    """The frames shown at these times, upright; decodes no further than to the last of them."""
    container.streams.video[0].codec_context.thread_count = 1  # clips are decoded side by side
    wanted = iter(times)
    time = next(wanted)
    for frame in container.decode(video=0):
        if frame.pts is not None and frame.pts > time:
            break
        if frame.pts != time:
            continue
        if frame.is_corrupt:
            raise BrokenFile("a frame is damaged")
        yield Image.fromarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
        time = next(wanted, None)
        if time is None:
            return
    raise BrokenFile("frames that it lists cannot be decoded")
