"""Draw or read a seeded sample of a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from prisma_steps.schema import Images, label
from prisma_steps.seeding import numpy_generator
from prisma_steps.step import Blocks, Field, Job, OutsideFolder, StepError, StepParams, step

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from prisma_steps.data.source import ImageSource

#: Images of the data sets that are the same everywhere.
COUNTS = {"dsprites": 737_280, "digits": 1_797}

#: Pixels made at once.
BLOCK_BYTES = 64 * 2**20

_FOLDER_ONLY: dict[str, Any] = {"only_for": {"dataset": ["image_folder"]}}


class Params(StepParams):
    """Which images of which data set."""

    dataset: Literal["dsprites", "digits", "image_folder"] = Field(
        description="dsprites (drawn), digits (from scikit-learn), or image_folder (files on disk)"
    )
    n_images: int | None = Field(None, gt=0, description="how many images; null takes all that are left")
    skip: int = Field(
        0,
        ge=0,
        description="images of the shuffled data set to pass over first: samples of one seed whose ranges "
        "skip … skip + n_images do not overlap share no image",
    )
    seed: int = Field(0, ge=0, description="seed of the order in which the data set is shuffled")
    path: OutsideFolder | None = Field(
        None,
        description="the folder of images; its subfolders are the classes",
        json_schema_extra=_FOLDER_ONLY,
    )
    size: int = Field(
        224,
        gt=0,
        description="side in pixels to which the files of a folder are resized and cut",
        json_schema_extra=_FOLDER_ONLY,
    )

    @model_validator(mode="after")
    def _path_where_needed(self) -> Params:
        if self.dataset == "image_folder" and self.path is None:
            raise ValueError("dataset: image_folder needs `path`, the folder of images")
        if self.dataset != "image_folder" and self.path is not None:
            raise ValueError(f"`path` is for dataset: image_folder, not for {self.dataset}: leave it out")
        return self

    @model_validator(mode="after")
    def _sample_within_data_set(self) -> Params:
        if self.dataset in COUNTS:
            _check_range(self, COUNTS[self.dataset])
        return self


@step(inputs={}, output=Images)
def load_images(params: Params, job: Job) -> Blocks:
    """Draw or read a seeded sample of a data set.

    The data set is shuffled by ``seed``; the sample is the section of it that ``skip`` and ``n_images`` name.
    The order of the images is that of the shuffle, so that the first images of a sample are a sample too.

    Raises:
        StepError: when a folder holds no images, fewer than asked for, or files that are no images.
    """
    import xarray as xr

    images = _open(params)
    chosen = _sample(params, images.count)
    template = _template(images, chosen)

    def make(where: slice) -> xr.Dataset:
        job.progress(where.start, len(chosen), "images")
        ids = template["image"].values[where]
        return xr.Dataset({"pixels": (template["pixels"].dims, images.pixels(chosen[where]))}, {"image": ids})

    size = max(BLOCK_BYTES // (images.shape[0] * images.shape[1] * images.shape[2]), 1)
    return Blocks(label(template), size, make)


def _open(params: Params) -> ImageSource:
    if params.dataset == "dsprites":
        from prisma_steps.data.dsprites import source

        return source()
    if params.dataset == "digits":
        from prisma_steps.data.digits import source

        return source()
    from prisma_steps.data.image_folder import source

    return source(str(params.path), params.size)


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


def _template(images: ImageSource, chosen: np.ndarray) -> xr.Dataset:
    import dask.array as da
    import numpy as np
    import xarray as xr

    channels, rows, columns = images.shape
    coords = {name: ("image", values) for name, values in images.coords(chosen).items()}
    if images.class_names is not None:
        coords["class_name"] = ("class", np.array(images.class_names))
        coords["class"] = ("class", np.arange(len(images.class_names)))
    coords["channel"] = ("channel", np.arange(channels))
    coords["row"], coords["column"] = ("row", np.arange(rows)), ("column", np.arange(columns))
    pixels = da.zeros((len(chosen), *images.shape), dtype=np.uint8)
    return xr.Dataset({"pixels": (("image", "channel", "row", "column"), pixels)}, coords)
