"""What makes latents fire: their images, under a map of where in them they fire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prisma_steps.figures.average import frame
from prisma_steps.figures.heat import COLOURS, over_image
from prisma_steps.figures.one_image import bare, pixels_of, stills_of
from prisma_steps.figures.patch_grid import frames_of, in_frame, on_grid, require_tokens
from prisma_steps.figures.style import FigureParams, Plot, figure, require
from prisma_steps.schema import Images, Ranking
from prisma_steps.step import Field, StepError

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from matplotlib.figure import Figure

#: Inches: the text below an image, between images, left of a row, above the first row, and the colour bar.
TEXT, GAP, NAME, TITLE, BAR = 0.13, 0.04, 0.42, 0.17, 0.42

#: Height of an image at most, in inches.
TALLEST = 1.1


class Params(FigureParams):
    """Which latents and which of their images."""

    width: Literal["one_column", "two_columns"] = Field(
        "two_columns", description="width in print: one column is 3.5 inches, two are 7.2"
    )
    latents: list[int] | None = Field(
        None, min_length=1, description="latents, one row each; the first ones of the ranking when null"
    )
    n_latents: int = Field(6, gt=0, description="rows at most, where latents are not named")
    n_images: int = Field(8, gt=0, description="images of a row at most")
    by: Literal["rank", "quantile"] = Field(
        "rank", description="the images of the highest activation, or those at quantiles of it"
    )
    frames: Literal["highest", "strip"] = Field(
        "highest", description="of a clip, the frame of the highest activation, or all frames side by side"
    )


@figure(inputs={"ranking": Ranking, "images": Images})
def top_images(ranking: xr.Dataset, images: xr.Dataset, params: Params) -> Plot:
    """Draw images that make latents fire, a row a latent, under a map of the activation on their patches.

    The colours of a row go from 0 to the latent's highest activation in it; below each image is the highest
    activation of its tokens, of CLS too.

    Raises:
        StepError: when a latent, an image or the quantiles are missing, or the tokens are no patches.
    """
    prefix = {"rank": "top", "quantile": "quantile"}[params.by]
    wanted = [f"{prefix}_{what}" for what in ("image", "activation", "heat_map")]
    require(ranking, *wanted, params.by, "latent", "token", of="top_images")
    require_tokens(ranking, of="top_images")
    if not bool((ranking["token_kind"] == "patch").any()):
        raise StepError("top_images: no token is a patch: the dictionary is of tokens without a place")
    shown = ranking[wanted].sel(latent=_latents(ranking, params)).isel({params.by: slice(params.n_images)})
    shown = shown.rename(dict(zip(wanted, ("image", "activation", "heat_map"), strict=True))).compute()
    drawing = _draw(shown, images, params)
    return Plot(drawing, frame(shown[["image", "activation"]]), _caption(shown, params))


def _latents(ranking: xr.Dataset, params: Params) -> list[int]:
    there = ranking["latent"].values.tolist()
    asked = there[: params.n_latents] if params.latents is None else params.latents
    strange = [latent for latent in asked if latent not in there]
    if strange:
        raise StepError(
            f"top_images: latent {strange[0]} is not in the ranking, which has {len(there)} latents such as "
            f"{', '.join(map(str, there[:4]))}"
        )
    return asked


def _draw(shown: xr.Dataset, images: xr.Dataset, params: Params) -> Figure:
    """A row a latent; all placed in inches, to the size of print."""
    from matplotlib.figure import Figure

    rows = [_row(shown.sel(latent=latent), images, params) for latent in shown["latent"].values]
    n_columns = shown.sizes[params.by]
    pixels = next((cell for row in rows for cell in row if cell is not None), None)
    if pixels is None:
        raise StepError("top_images: none of these latents fires in any image: name others in `latents`")
    shape = pixels.shape[0] / pixels.shape[1]
    width = min((params.inches - NAME - GAP) / n_columns - GAP, TALLEST / shape)
    height, left = width * shape, (params.inches - NAME - n_columns * (width + GAP)) / 2
    page = (params.inches, TITLE + len(rows) * (height + TEXT + GAP) + BAR)
    drawing = Figure(figsize=page)
    for r, (latent, cells) in enumerate(zip(shown["latent"].values, rows, strict=True)):
        top = TITLE + r * (height + TEXT + GAP)
        drawing.text(
            (left + 0.04) / page[0], 1 - (top + height / 2) / page[1], f"{latent}", va="center", fontsize=7
        )
        for c, cell in enumerate(cells):
            place = (left + NAME + c * (width + GAP), top, width, height)
            _show(drawing, place, cell, float(shown["activation"].isel({params.by: c}).sel(latent=latent)))
            if r == 0:
                _name(drawing, place, params.by, shown[params.by].values[c])
    drawing.text((left + 0.04) / page[0], 1 - 0.03 / page[1], "Latent", va="top", fontsize=6)
    _add_bar(drawing)
    return drawing


def _row(of_latent: xr.Dataset, images: xr.Dataset, params: Params) -> list[np.ndarray | None]:
    """The images of a latent under their maps; None where it fires in no more of them."""
    dim = params.by
    is_patch = of_latent["token_kind"].values == "patch"
    highest = float(of_latent["heat_map"].isel(token=is_patch).max())
    cells = []
    for place in range(of_latent.sizes[dim]):
        one = of_latent.isel({dim: place})
        name = str(one["image"].item())
        pixels = pixels_of(images, name, of="top_images") if name else None
        cells.append(None if pixels is None else _cell(pixels, one["heat_map"], highest, params.frames))
    return cells


def _cell(pixels: xr.DataArray, heat: xr.DataArray, highest: float, frames: str) -> np.ndarray:
    """An image, or of a clip one frame or all of them side by side, under the map."""
    import numpy as np

    if "frame" in pixels.dims:
        require(heat.to_dataset(name="heat_map"), "patch_frame", of="top_images")
    maps = [on_grid(in_frame(heat, number)) for number in frames_of(heat)]
    stills = stills_of(pixels, len(maps))
    drawn = [over_image(still, patches, highest) for still, patches in zip(stills, maps, strict=True)]
    if frames == "highest":
        return drawn[int(np.argmax([np.nanmax(patches) for patches in maps]))]
    edge = np.ones((len(drawn[0]), max(1, drawn[0].shape[1] // 32), 3))
    return np.concatenate([part for still in drawn for part in (still, edge)][:-1], axis=1)


def _show(
    drawing: Figure, place: tuple[float, float, float, float], cell: np.ndarray | None, activation: float
) -> None:
    left, top, width, height = place
    across, down = drawing.get_size_inches()
    panel = drawing.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
    bare(panel)
    if cell is None:
        panel.text(0.5, 0.5, "fires in\nno more", ha="center", va="center", fontsize=5, color="0.4",
                   transform=panel.transAxes)  # fmt: skip
        return
    panel.imshow(cell, aspect="auto")
    panel.set_xlabel(f"{activation:.3g}", fontsize=5, labelpad=1)


def _name(drawing: Figure, place: tuple[float, float, float, float], by: str, value: float) -> None:
    left, top, width, _ = place
    across, down = drawing.get_size_inches()
    text = f"rank {value + 1}" if by == "rank" else f"quantile {value:g}"
    drawing.text((left + width / 2) / across, 1 - (top - 0.03) / down, text, ha="center", fontsize=6)


def _add_bar(drawing: Figure) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    across, down = drawing.get_size_inches()
    bar = drawing.add_axes((0.3, 1 - (down - BAR + 0.08) / down, 0.4, 0.07 / down))
    label = "Activation on the patch / highest of the row"
    drawing.colorbar(ScalarMappable(Normalize(0, 1), COLOURS), cax=bar, orientation="horizontal", label=label)
    bar.tick_params(pad=1)
    bar.xaxis.labelpad = 1


def _caption(shown: xr.Dataset, params: Params) -> str:
    chosen = {
        "rank": "in which each latent fires most strongly, from the strongest",
        "quantile": "at quantiles of each latent's activation over the images in which it fires",
    }[params.by]
    return (
        f"Images {chosen}; one row a latent ({shown.sizes['latent']}). Colours: activation on the patches, "
        "over the image in grey. Below each: the highest activation of its tokens."
    )
