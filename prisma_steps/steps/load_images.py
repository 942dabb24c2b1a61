"""Draw or read a seeded sample of a data set."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator, model_validator

from prisma_steps.job import Job
from prisma_steps.schema import Images, label
from prisma_steps.seeding import numpy_generator
from prisma_steps.step import Blocks, Field, OutsideFolder, StepError, StepParams, step

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from prisma_steps.data.files import Checked, Files
    from prisma_steps.data.source import ImageSource

#: Images of the data sets that are the same everywhere; of moving_sprites, for each speed.
COUNTS = {"dsprites": 737_280, "digits": 1_797, "moving_sprites": 2_949_120}

#: Data sets that are read from files.
FOLDERS = ("image_folder", "video_folder")

#: Pixels made at once.
BLOCK_BYTES = 64 * 2**20

#: At this speed, half of the places there are, opposite directions are the same.
_TOO_FAST = 16


def _only_for(*datasets: str, added_later: bool = False) -> dict[str, Any]:
    """Marks of a parameter that only some data sets have."""
    return {"only_for": {"dataset": list(datasets)}, **({"as_before": True} if added_later else {})}


class Params(StepParams):
    """Which images of which data set."""

    dataset: Literal["dsprites", "digits", "image_folder", "moving_sprites", "video_folder"] = Field(
        description="dsprites (drawn), moving_sprites (drawn clips), digits (from scikit-learn), "
        "image_folder or video_folder (files on disk)"
    )
    n_images: int | None = Field(
        None, gt=0, description="how many images, or clips; null takes all that are left"
    )
    skip: int = Field(
        0,
        ge=0,
        description="images of the shuffled data set to pass over first: samples of one seed whose ranges "
        "skip … skip + n_images do not overlap share no image",
    )
    seed: int = Field(0, ge=0, description="seed of the order in which the data set is shuffled")
    path: OutsideFolder | None = Field(
        None,
        description="the folder of images, or of videos or folders of frames; its subfolders are the classes",
        json_schema_extra=_only_for(*FOLDERS),
    )
    size: int = Field(
        224,
        gt=0,
        description="side in pixels to which the files of a folder are resized and cut",
        json_schema_extra=_only_for(*FOLDERS),
    )
    pixels: Literal["stored", "lazy"] = Field(
        "stored",
        description="lazy copies no pixel into the store: files are decoded when they are used; for folders "
        "too large to be stored again",
        json_schema_extra=_only_for(*FOLDERS, added_later=True),
    )
    on_broken: Literal["error", "skip"] = Field(
        "error",
        description="what to do about files that cannot be decoded: skip leaves them out of the sample, and "
        "lists them; the sample is smaller by so many",
        json_schema_extra=_only_for(*FOLDERS, added_later=True),
    )
    n_frames: int = Field(
        8,
        gt=0,
        description="frames of every clip",
        json_schema_extra=_only_for("moving_sprites", "video_folder"),
    )
    frame_stride: int = Field(
        1,
        gt=0,
        description="every how many frames of a video one is taken; those taken lie in the middle of it",
        json_schema_extra=_only_for("video_folder"),
    )
    speeds: list[int] = Field(
        [1],
        min_length=1,
        description="places, of 32 along each axis, that sprites move from one frame to the next",
        json_schema_extra=_only_for("moving_sprites"),
    )
    motion: Literal["moving", "static"] = Field(
        "moving",
        description="static is a control: every frame of a clip is its first, and labels stay",
        json_schema_extra=_only_for("moving_sprites"),
    )
    classes: Literal["direction", "start"] = Field(
        "direction",
        description="what the class of a clip is: the direction in which the sprite moves, which no frame by "
        "itself tells; or, a control, the quarter in which it starts, which the first frame tells",
        json_schema_extra=_only_for("moving_sprites", added_later=True),
    )

    @field_validator("speeds")
    @classmethod
    def _tell_directions_apart(cls, speeds: list[int]) -> list[int]:
        if not all(0 < speed < _TOO_FAST for speed in speeds):
            raise ValueError(
                f"a speed is 1 to {_TOO_FAST - 1}: sprites move round and round 32 places, so that at "
                f"{_TOO_FAST} right and left are the same"
            )
        if len(set(speeds)) < len(speeds):
            raise ValueError("each speed may be named once")
        return speeds

    @model_validator(mode="after")
    def _motion_takes_time(self) -> Params:
        if self.dataset == "moving_sprites" and self.n_frames < 2:
            raise ValueError(
                "dataset: moving_sprites needs n_frames of at least 2: one frame shows no motion"
            )
        return self

    @model_validator(mode="after")
    def _path_where_needed(self) -> Params:
        if self.dataset in FOLDERS and self.path is None:
            raise ValueError(f"dataset: {self.dataset} needs `path`, the folder of images")
        if self.dataset not in FOLDERS and self.path is not None:
            raise ValueError(
                f"`path` is for dataset: {' or '.join(FOLDERS)}, not for {self.dataset}: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _sample_within_data_set(self) -> Params:
        if self.dataset in COUNTS:
            of_each = len(self.speeds) if self.dataset == "moving_sprites" else 1
            _check_range(self, COUNTS[self.dataset] * of_each)
        return self


@step(inputs={}, output=Images)
def load_images(params: Params, job: Job) -> Blocks | xr.Dataset:
    """Draw or read a seeded sample of a data set.

    The data set is shuffled by ``seed``; the sample is the section of it that ``skip`` and ``n_images`` name.
    The order of the images is that of the shuffle, so that the first images of a sample are a sample too.
    Files that are left out because they are broken leave the sample smaller: it never depends on other files.

    Raises:
        StepError: when a folder holds no images, fewer than asked for, or files that are no images.
    """
    images = _open(params, job)
    chosen = _sample(params, images.count)
    if images.files is None or (params.pixels, params.on_broken) == ("stored", "error"):
        return _stored(images, chosen, {}, job)
    return _from_checked_files(images, images.files, chosen, params, job)


def _stored(images: ImageSource, chosen: np.ndarray, attrs: dict[str, Any], job: Job) -> Blocks:
    """The pixels, made or read block by block."""
    import dask.array as da
    import numpy as np
    import xarray as xr

    dims = ("image", *images.dims)
    pixels = da.zeros((len(chosen), *images.shape), dtype=np.uint8)
    template = xr.Dataset({"pixels": (dims, pixels)}, _coords(images, chosen), attrs)

    def make(where: slice) -> xr.Dataset:
        job.progress(where.start, len(chosen), "images")
        ids = template["image"].values[where]
        return xr.Dataset({"pixels": (dims, images.pixels(chosen[where]))}, {"image": ids})

    return Blocks(label(template), max(BLOCK_BYTES // math.prod(images.shape), 1), make)


def _from_checked_files(
    images: ImageSource, files: Files, chosen: np.ndarray, params: Params, job: Job
) -> Blocks | xr.Dataset:
    """Files that were decoded once before any is used."""
    import xarray as xr

    from prisma_steps.data import outside_pixels
    from prisma_steps.data.files import check

    checked = check(files, chosen, job)
    attrs = _left_out(files, checked, params)
    whole = chosen[checked.whole]
    if params.pixels == "stored":
        return _stored(images, whole, attrs, job)
    attrs[outside_pixels.READ_AS] = outside_pixels.read_as(files.reader)
    data = xr.Dataset({"pixel_hash": ("image", checked.hashes)}, _coords(images, whole), attrs)
    return outside_pixels.attach(label(data), files.root, job.threads)


def _left_out(files: Files, checked: Checked, params: Params) -> dict[str, Any]:
    """Says in the log and in attributes which broken files are left out, where they may be."""
    broken, count = checked.broken, len(checked.whole)
    strange = [name for name in broken if name in files.foreign]
    if broken and (params.on_broken == "error" or strange or len(broken) == count):
        raise files.refusal(list(broken.values()), count)
    if params.on_broken == "error":
        return {}
    for reason in broken.values():
        logging.getLogger(__name__).warning("left out: %s", reason)
    return {"n_left_out": len(broken), "left_out": list(broken)}


def _open(params: Params, job: Job) -> ImageSource:
    if params.dataset == "dsprites":
        from prisma_steps.data.dsprites import source

        return source()
    if params.dataset == "digits":
        from prisma_steps.data.digits import source

        return source()
    if params.dataset == "moving_sprites":
        from prisma_steps.data.moving_sprites import source

        return source(params.n_frames, params.speeds, params.motion == "moving", params.classes)
    if params.dataset == "video_folder":
        from prisma_steps.data.video import source

        return source(str(params.path), params.size, params.n_frames, params.frame_stride, job.threads)
    from prisma_steps.data.image_folder import source

    return source(str(params.path), params.size, job.threads)


def _sample(params: Params, count: int) -> np.ndarray:
    """Numbers of the chosen images, in the order in which they are stored."""
    try:
        _check_range(params, count)
    except ValueError as error:
        raise StepError(f"load_images: {error}") from error
    end = None if params.n_images is None else params.skip + params.n_images
    return numpy_generator(params.seed, "sample of images").permutation(count)[params.skip : end]


def _check_range(params: Params, count: int) -> None:
    wanted = params.skip + (params.n_images or 1)
    if wanted > count:
        raise ValueError(
            f"{params.dataset} has {count:,} images; skip {params.skip:,} and n_images "
            f"{'all' if params.n_images is None else format(params.n_images, ',')} ask for more"
        )


def _coords(images: ImageSource, chosen: np.ndarray) -> dict[str, Any]:
    import numpy as np

    coords: dict[str, Any] = {name: ("image", values) for name, values in images.coords(chosen).items()}
    if images.class_names is not None:
        coords["class_name"] = ("class", np.array(images.class_names))
        coords["class"] = ("class", np.arange(len(images.class_names)))
    sizes = zip(images.dims, images.shape, strict=True)
    return coords | {dim: (dim, np.arange(size)) for dim, size in sizes}
