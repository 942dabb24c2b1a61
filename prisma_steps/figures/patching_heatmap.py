"""Which token of which layer carries the answer: effects of activation patching on the patch grid."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Literal

from prisma_steps.figures.average import average, frame
from prisma_steps.figures.patch_grid import on_grid, others, require_tokens
from prisma_steps.figures.style import FigureParams, Plot, figure, require, subplots
from prisma_steps.schema import Patching
from prisma_steps.step import Field, StepError

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

EFFECT = "normalised_logit_difference"

#: Panels in one row, by width.
PER_ROW = {"one_column": 3, "two_columns": 6}

#: Value of a cell without any effect: the corrupted run when clean is patched in, the clean run in reverse.
NO_EFFECT = {"denoising": 0.0, "noising": 1.0}

#: Left edge of the column of tokens that have no place in the image, in patches from the first patch.
ASIDE = -1.6

#: Width of a panel in inches, at most.
WIDEST = 1.8

#: Heights of a panel's title and of the colour bar with its label, in inches.
TITLE, BAR = 0.2, 0.55


class Params(FigureParams):
    """Settings of the patching heat map."""

    width: Literal["one_column", "two_columns"] = Field(
        "two_columns", description="width in print: one column is 3.5 inches, two are 7.2"
    )


@figure(inputs={"patching": Patching})
def patching_heatmap(patching: xr.Dataset, params: Params) -> Plot:
    """Draw the mean effect of every patch of every layer on the patch grid, CLS beside it.

    Colours are centred on the value of a cell without any effect: 0 (the corrupted run) in denoising, 1 (the
    clean run) in noising.
    """
    require(patching, EFFECT, "pair", "layer", of="patching_heatmap")
    require_tokens(patching, of="patching_heatmap")
    effect = average(patching[[EFFECT]], "pair")
    norm = _norm(effect, patching.attrs.get("direction"))
    per_row = min(PER_ROW[params.width], effect.sizes["layer"])
    rows = ceil(effect.sizes["layer"] / per_row)
    side = min(params.inches / per_row, WIDEST)
    height = rows * (_aspect(effect) * side + TITLE) + BAR
    drawing, axes = subplots(params.inches, height, rows, per_row, layout="compressed")
    for panel, layer in zip(axes.flat, effect["layer"].values, strict=False):
        _draw(panel, effect[EFFECT].sel(layer=layer), norm)
        panel.set_title(f"Layer {layer}")
    for panel in axes.flat[effect.sizes["layer"] :]:
        panel.remove()
    drawing.colorbar(
        axes[0, 0].images[0],
        ax=list(axes.flat[: effect.sizes["layer"]]),
        location="bottom",
        aspect=40,
        shrink=0.7,
        label=f"Normalised logit difference, n = {patching.sizes['pair']} pairs\n(clean = 1, corrupted = 0)",
    )
    return Plot(drawing, frame(effect), _caption(patching))


def _norm(effect: xr.Dataset, direction: str | None) -> Normalize:
    """The colour scale, symmetric about the value of a cell without effect."""
    from matplotlib.colors import Normalize

    if direction not in NO_EFFECT:
        raise StepError(
            f"patching_heatmap: the attribute 'direction' is {direction!r}, expected {' or '.join(NO_EFFECT)}"
        )
    centre = NO_EFFECT[direction]
    reach = float(abs(effect[EFFECT] - centre).max()) or 1.0
    return Normalize(centre - reach, centre + reach)


def _aspect(effect: xr.Dataset) -> float:
    """Height of a panel over its width."""
    rows, columns = (int(effect[name].max()) + 1 for name in ("patch_row", "patch_col"))
    return rows / (columns - ASIDE)


def _draw(panel: Axes, cells: xr.DataArray, norm: Normalize) -> None:
    patches, aside = on_grid(cells), others(cells)
    rows, columns = patches.shape
    look = {"norm": norm, "cmap": "RdBu_r", "origin": "upper"}
    panel.imshow(patches, extent=(0, columns, rows, 0), **look)
    top = (rows - aside.size) / 2
    panel.imshow(aside.values[:, None], extent=(ASIDE, ASIDE + 1, top + aside.size, top), **look)
    _outline(panel, 0, 0, columns, rows)
    for place in range(aside.size):
        _outline(panel, ASIDE, top + place, 1, 1)
    if aside.size:
        panel.text(ASIDE + 0.5, top - 0.2, _aside_name(aside), ha="center", va="bottom", fontsize=5)
    panel.set(xlim=(ASIDE - 0.1, columns + 0.1), ylim=(rows + 0.1, -0.1))
    panel.set_axis_off()


def _aside_name(aside: xr.DataArray) -> str:
    """What the cells beside the grid are, from the top."""
    return "CLS" if aside.size == 1 else "CLS,\nreg."


def _outline(panel: Axes, left: float, top: float, width: float, height: float) -> None:
    from matplotlib.patches import Rectangle

    panel.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor="0.4", linewidth=0.4))


def _caption(patching: xr.Dataset) -> str:
    runs = ("clean", "corrupted")
    put, into = runs if patching.attrs["direction"] == "denoising" else runs[::-1]
    return (
        f"Activation patching: the residual stream before each layer, at one token, from the {put} run in "
        f"the {into} run. Mean over {patching.sizes['pair']} pairs; 1 is the clean run, 0 the corrupted one."
    )
