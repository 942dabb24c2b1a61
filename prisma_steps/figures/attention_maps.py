"""Where one token looks in an image: the attention pattern of every head, over the image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from prisma_steps.figures.average import frame
from prisma_steps.figures.one_image import bare, image_id, in_colour, pixels_of
from prisma_steps.figures.patch_grid import PLACES, on_grid, others
from prisma_steps.figures.style import FigureParams, Plot, figure, require
from prisma_steps.schema import Activations, Images
from prisma_steps.step import Field, StepError

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

#: Heights of a map's title, of the text below it and of the colour bar with its label, and the space between
#: maps, in inches.
TITLE, TEXT, BAR, GAP = 0.16, 0.11, 0.5, 0.06

#: How much darker a black pixel makes a map than a white one.
SHADE = 0.2


class Params(FigureParams):
    """Settings of the attention maps."""

    width: Literal["one_column", "two_columns"] = Field(
        "two_columns", description="width in print: one column is 3.5 inches, two are 7.2"
    )
    image: int | str = Field(0, description="the image, by its place among the activations or by its id")
    query: Literal["cls"] | Annotated[list[int], Field(min_length=2, max_length=2)] = Field(
        "cls", description="the token that attends: cls, or the row and column of a patch"
    )


@figure(inputs={"activations": Activations, "images": Images})
def attention_maps(activations: xr.Dataset, images: xr.Dataset, params: Params) -> Plot:
    """Draw the attention of one token to all patches, for every layer and head, over the image.

    All maps have one colour scale. Attention to CLS has no place in the image and is written below each map.

    Raises:
        StepError: when the pattern was not extracted, or the image or the patch is not there.
    """
    require(activations, "pattern", "layer", "head", "query_token", "key_token", of="attention_maps")
    tokens = _tokens(activations)
    image = image_id(activations, params.image, of="attention_maps")
    pixels = in_colour(pixels_of(images, image, of="attention_maps"))
    maps = _of_query(activations["pattern"].sel(image=image), tokens, params.query)
    drawing = _draw(maps, pixels, params)
    return Plot(drawing, frame(maps.to_dataset()), _caption(image, params.query))


def _tokens(activations: xr.Dataset) -> xr.Dataset:
    """Kind and place of every token that can be attended to."""
    if not set(PLACES) <= set(activations.variables):
        raise StepError(
            f"attention_maps: the activations do not say where tokens lie: no {', '.join(PLACES)}. Extract a "
            "site along token beside the pattern: sites: [pattern, resid_pre], tokens: all."
        )
    tokens = activations[[*PLACES]].reset_coords()
    dim = tokens["token_kind"].dims[0]
    if tokens.sizes[dim] != activations.sizes["key_token"]:
        raise StepError(
            f"attention_maps: the activations place {tokens.sizes[dim]} tokens in the image, but the pattern "
            f"has {activations.sizes['key_token']}. Extract the pattern with tokens: all."
        )
    return tokens.drop_vars([dim], errors="ignore").rename({dim: "token"}).load()


def _of_query(pattern: xr.DataArray, tokens: xr.Dataset, asked: Literal["cls"] | list[int]) -> xr.DataArray:
    """The pattern's row of one query token, along ``token``: the tokens that it attends to."""
    kind, row, column = tokens["token_kind"], tokens["patch_row"], tokens["patch_col"]
    is_patch = kind == "patch"
    is_query = kind == "cls" if asked == "cls" else is_patch & (row == asked[0]) & (column == asked[1])
    if not is_query.any():
        raise StepError(
            f"attention_maps: no token is the query {asked!r}; the tokens are of the kinds "
            f"{', '.join(sorted(set(kind.values.tolist())))}, patches go from [0, 0] to "
            f"[{int(row.max())}, {int(column.max())}]"
        )
    attention = pattern.isel(query_token=int(is_query.values.argmax()))
    attention = attention.drop_vars(["query_token", "key_token"], errors="ignore")
    return attention.rename(key_token="token").assign_coords(tokens).transpose("layer", "head", "token")


def _draw(maps: xr.DataArray, pixels: np.ndarray, params: Params) -> Figure:
    """The image at the left, then one row of maps a layer; all placed in inches, to the size of print."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    n_layers, n_heads = maps.sizes["layer"], maps.sizes["head"]
    width = (params.inches - GAP) / (n_heads + 1) - GAP
    height = width * pixels.shape[0] / pixels.shape[1]
    page = (params.inches, n_layers * (TITLE + height + TEXT) + BAR)
    drawing = Figure(figsize=page)

    def panel(row: float, column: int) -> Axes:
        left, top = GAP + column * (width + GAP), TITLE + row * (TITLE + height + TEXT)
        return _add_axes(drawing, left, top, width, height)

    _show_image(panel((n_layers - 1) / 2, 0), pixels, maps, params.query)
    strongest = float(maps.where(maps["token_kind"] == "patch").max())
    colours = ScalarMappable(Normalize(0, strongest), "Blues")
    for row, layer in enumerate(maps["layer"].values):
        for column, head in enumerate(maps["head"].values):
            axes = panel(row, column + 1)
            _show_map(axes, pixels, maps.sel(layer=layer, head=head), colours)
            axes.set_title(f"L{layer} H{head}", pad=2)
    bar = _add_axes(drawing, page[0] * 0.25, page[1] - BAR + 0.05, page[0] * 0.5, 0.07)
    drawing.colorbar(
        colours, cax=bar, orientation="horizontal", label="Attention to the patch (all tokens sum to 1)"
    )
    return drawing


def _add_axes(drawing: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes of a size and place in inches from the upper left corner."""
    across, down = drawing.get_size_inches()
    return drawing.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def _show_image(
    panel: Axes, pixels: np.ndarray, maps: xr.DataArray, query: Literal["cls"] | list[int]
) -> None:
    from matplotlib.patches import Rectangle

    panel.imshow(pixels)
    panel.set_title("Image", pad=2)
    if query != "cls":
        rows, columns = on_grid(maps[0, 0]).shape
        height, width = pixels.shape[0] / rows, pixels.shape[1] / columns
        corner = (query[1] * width - 0.5, query[0] * height - 0.5)
        panel.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="#de8f05", linewidth=1.2))
    bare(panel)


def _show_map(panel: Axes, pixels: np.ndarray, attention: xr.DataArray, colours: ScalarMappable) -> None:
    """One head's map, shaded by the image; attention to CLS and registers in words."""
    import numpy as np

    patches = on_grid(attention)
    grey = pixels.mean(-1, keepdims=True) / 255
    row, column = (
        np.arange(size) * count // size for size, count in zip(grey.shape, patches.shape, strict=False)
    )
    heat = colours.to_rgba(patches)[row[:, None], column, :3]
    panel.imshow(heat * (1 - SHADE + SHADE * grey))
    aside = others(attention)
    if aside.size:
        name = "CLS" if aside.size == 1 else "CLS, reg."
        panel.set_xlabel(f"{name} {float(aside.sum()):.2f}", fontsize=5, labelpad=1)
    bare(panel)


def _caption(image: str, query: Literal["cls"] | list[int]) -> str:
    of = "the CLS token" if query == "cls" else f"the patch at row {query[0]}, column {query[1]}"
    return (
        f"Attention of {of} to every patch of image {image}, by layer (L) and head (H). Below each map: "
        "attention to tokens that are no patches." + ("" if query == "cls" else " Orange: the query.")
    )
