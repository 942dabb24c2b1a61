"""What every patch of an image says, layer by layer: maps of classes by the logit lens."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any, Literal

from prisma_steps.figures.average import frame
from prisma_steps.figures.one_image import bare, image_id, pixels_of, stills_of
from prisma_steps.figures.patch_grid import frames_of, on_grid, others, require_tokens
from prisma_steps.figures.style import FigureParams, Plot, figure, require, subplots
from prisma_steps.figures.token_maps import shaded
from prisma_steps.schema import Images, Lens
from prisma_steps.step import Field, StepError

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from matplotlib.axes import Axes

#: Panels in one row, by width; heights of a panel's title and of the legend, in inches.
PER_ROW = {"one_column": 4, "two_columns": 7}
TITLE, LEGEND = 0.32, 0.3

#: Classes with a colour of their own, those of the most cells, and the grey of all others.
N_COLOURS = 7
OTHERS = (0.85, 0.85, 0.85)


class Params(FigureParams):
    """Which image."""

    width: Literal["one_column", "two_columns"] = Field(
        "two_columns", description="width in print: one column is 3.5 inches, two are 7.2"
    )
    image: int | str = Field(0, description="the image, by its place in the lens or by its id")
    frame: int = Field(0, ge=0, description="of a clip: the frame on the patch grid (a tubelet)")


@figure(inputs={"lens": Lens, "images": Images})
def lens_maps(lens: xr.Dataset, images: xr.Dataset, params: Params) -> Plot:
    """Draw the class of every patch by the logit lens, one map a layer, beside the image.

    Raises:
        StepError: when the image or the frame is not there.
    """
    require(lens, "top_class", "layer", "token", "place", of="lens_maps")
    require_tokens(lens, of="lens_maps")
    image = image_id(lens, params.image, of="lens_maps")
    classes = lens[["top_class"]].isel(place=0, drop=True).sel(image=image)
    cells = _of_frame(classes, params.frame)["top_class"].load()
    colours = _colours(cells)
    n_panels = cells.sizes["layer"] + 1
    per_row = min(PER_ROW[params.width], n_panels)
    rows, side = ceil(n_panels / per_row), params.inches / per_row
    stills = stills_of(pixels_of(images, image, of="lens_maps"), len(frames_of(lens)))
    still = stills[frames_of(lens).index(params.frame)]
    height = side * still.shape[0] / still.shape[1] + TITLE
    drawing, axes = subplots(params.inches, rows * height + LEGEND, rows, per_row)
    _show_image(axes.flat[0], still, f"Frame {params.frame}" if len(stills) > 1 else "Image")
    for panel, layer in zip(axes.flat[1:], cells["layer"].values, strict=False):
        _show_map(panel, still, cells.sel(layer=layer), colours, _names(lens))
        panel.set_title("Embedding" if layer == 0 else f"After {layer} block{'s' * bool(layer > 1)}")
    for panel in axes.flat[n_panels:]:
        panel.remove()
    drawing.legend(handles=_handles(cells, colours, _names(lens)), loc="outside lower center", ncols=4)
    caption = (
        f"The class of each patch of image {image} by the logit lens: the model's final norm and head on the "
        "token alone, after every block, over the image. Below each map: the class of CLS, if there is one."
    )
    return Plot(drawing, frame(cells.to_dataset()), caption)


def _of_frame(classes: xr.Dataset, asked: int) -> xr.Dataset:
    """The tokens of one frame of a clip, and those that are no patches."""
    if asked not in (there := frames_of(classes)):
        raise StepError(f"lens_maps: no frame {asked}: the patch grid has frames 0 to {there[-1]}")
    if "patch_frame" not in classes.coords:
        return classes
    frames = classes["patch_frame"].values
    return classes.isel(token=(frames == asked) | (frames < 0))


def _colours(cells: xr.DataArray) -> dict[int, Any]:
    """A colour for each of the classes of the most cells."""
    import numpy as np
    import seaborn as sns

    found, counts = np.unique(cells.values, return_counts=True)
    most = found[np.argsort(-counts, kind="stable")][:N_COLOURS]
    return dict(zip(most.tolist(), sns.color_palette("colorblind", N_COLOURS), strict=False))


def _names(lens: xr.Dataset) -> list[str] | None:
    return lens["class_name"].values.tolist() if "class_name" in lens.variables else None


def _name(number: int, names: list[str] | None) -> str:
    return f"class {number}" if names is None else str(names[number])


def _show_image(panel: Axes, still: np.ndarray, title: str) -> None:
    panel.imshow(still)
    panel.set_title(title)
    bare(panel)


def _show_map(
    panel: Axes, still: np.ndarray, cells: xr.DataArray, colours: dict[int, Any], names: list[str] | None
) -> None:
    panel.imshow(shaded(_coloured(on_grid(cells), colours), still))
    aside = others(cells)
    if "cls" in aside["token_kind"].values:
        cls = int(aside.values[aside["token_kind"].values == "cls"][0])
        panel.set_xlabel(f"CLS: {_name(cls, names)}", fontsize=5, labelpad=1)
    bare(panel)


def _coloured(classes: np.ndarray, colours: dict[int, Any]) -> np.ndarray:
    import numpy as np

    shown = np.full((*classes.shape, 3), OTHERS)
    for number, colour in colours.items():
        shown[classes == number] = colour
    return shown


def _handles(cells: xr.DataArray, colours: dict[int, Any], names: list[str] | None) -> list[Any]:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=_name(number, names)) for number, colour in colours.items()]
    has_others = not bool(cells.isin(list(colours)).all())
    return [*handles, Patch(color=OTHERS, label="other classes")] if has_others else handles
