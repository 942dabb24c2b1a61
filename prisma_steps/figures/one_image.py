"""One image among those that data is of, and how it is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prisma_steps.figures.style import require
from prisma_steps.step import StepError

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from matplotlib.axes import Axes


def image_id(data: xr.Dataset, asked: int | str, of: str) -> str:
    """The id of an image of ``data`` that is named by its place or by its id.

    Raises:
        StepError: when there is none, in the name of the figure ``of``.
    """
    ids = data["image"].values.tolist()
    if isinstance(asked, int) and 0 <= asked < len(ids):
        return ids[asked]
    if isinstance(asked, str) and asked in ids:
        return asked
    raise StepError(
        f"{of}: no image {asked!r} in the data. Give a place from 0 to {len(ids) - 1}, or an id such as "
        f"{ids[0]!r}."
    )


def image_ids(data: xr.Dataset, asked: int | str | list[int | str], of: str) -> list[str]:
    """The ids of one or several images, each named by its place or by its id.

    Raises:
        StepError: when one is not there, in the name of the figure ``of``.
    """
    return [image_id(data, one, of) for one in (asked if isinstance(asked, list) else [asked])]


def pixels_of(images: xr.Dataset, image: str, of: str) -> xr.DataArray:
    """The pixels of an image or clip.

    Raises:
        StepError: when it is not among ``images``, in the name of the figure ``of``.
    """
    require(images, "pixels", "image", of=of)
    if image not in images.get_index("image"):
        raise StepError(f"{of}: the data is of image {image!r}, which is not in the images")
    return images["pixels"].sel(image=image)


def in_colour(pixels: xr.DataArray) -> np.ndarray:
    """A still image as [row, column, channel], channels repeated to RGB."""
    import numpy as np

    values = pixels.transpose("row", "column", "channel").values
    return np.broadcast_to(values, (*values.shape[:2], 3))


def stills_of(pixels: xr.DataArray, n_frames: int) -> list[np.ndarray]:
    """A still image, or the first frame of each of the ``n_frames`` tubelets of a clip, in colour."""
    if "frame" not in pixels.dims:
        return [in_colour(pixels)]
    step = pixels.sizes["frame"] // n_frames
    return [in_colour(pixels.isel(frame=number * step)) for number in range(n_frames)]


def bare(panel: Axes) -> None:
    """A thin frame, and neither ticks nor grid."""
    panel.set(xticks=[], yticks=[])
    panel.grid(False)
    panel.spines[:].set(visible=True, color="0.4", linewidth=0.4)
