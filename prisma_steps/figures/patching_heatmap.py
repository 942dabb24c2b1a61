"""Which token or head of which layer carries the answer: effects of activation patching."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import TYPE_CHECKING, Literal

from prisma_steps.figures.average import average, frame
from prisma_steps.figures.patch_grid import on_grid, others, require_tokens
from prisma_steps.figures.style import FigureParams, Plot, figure, require, subplots
from prisma_steps.schema import MEANINGS, Patching
from prisma_steps.step import Field, StepError

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

#: What is drawn, as the scale calls it.
NAMES = {"logit_difference": "logit difference", "probability": "probability", "ce": "CE", "kl": "KL"}

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

    metric: Literal["logit_difference", "probability", "ce", "kl"] = Field(
        "logit_difference", description="which effect, normalised", json_schema_extra={"as_before": True}
    )
    width: Literal["one_column", "two_columns"] = Field(
        "two_columns", description="width in print: one column is 3.5 inches, two are 7.2"
    )


@figure(inputs={"patching": Patching})
def patching_heatmap(patching: xr.Dataset, params: Params) -> Plot:
    """Draw the mean effect of every patch of every layer on the patch grid, CLS beside it; or layer × head.

    Of clips every frame has a panel, of several sites every site. Pairs whose clean and corrupted run have
    the same value, so that nothing can be restored, are left out. Colours are centred on the value of a cell
    without any effect: 0 (the corrupted run) in denoising, 1 (the clean run) in noising.
    """
    name = f"normalised_{params.metric}"
    require(patching, name, "pair", "layer", of="patching_heatmap")
    by_head = _by_head(patching)
    if not by_head:
        require_tokens(patching, of="patching_heatmap")
    kept = _with_effect(patching[[name]], name)
    effect = average(kept, "pair")
    norm = _norm(effect[name], patching.attrs.get("direction"))
    panels = list(_panels(effect[name], by_head))
    per_row = min(PER_ROW[params.width], len(panels))
    rows = ceil(len(panels) / per_row)
    side = min(params.inches / per_row, WIDEST)
    aspect = effect.sizes["layer"] / effect.sizes["head"] if by_head else _aspect(effect)
    drawing, axes = subplots(
        params.inches, rows * (aspect * side + TITLE) + BAR, rows, per_row, layout="compressed"
    )
    for panel, (title, cells) in zip(axes.flat, panels, strict=False):
        (_draw_heads if by_head else _draw)(panel, cells, norm)
        panel.set_title(title)
    for panel in axes.flat[len(panels) :]:
        panel.remove()
    drawing.colorbar(
        axes[0, 0].images[0],
        ax=list(axes.flat[: len(panels)]),
        location="bottom",
        aspect=40,
        shrink=0.7,
        label=f"Normalised {NAMES[params.metric]}, n = {kept.sizes['pair']} pairs\n"
        "(clean = 1, corrupted = 0)",
    )
    return Plot(drawing, frame(effect), _caption(patching, kept.sizes["pair"], by_head))


def _by_head(patching: xr.Dataset) -> bool:
    """Whether heads were patched and not tokens.

    Raises:
        StepError: when both were, one by one.
    """
    if {"head", "token"} <= set(patching.dims):
        raise StepError(
            "patching_heatmap: the sweep is by layer, head and token, of which it draws two. Give it a sweep "
            "without each_token"
        )
    return "head" in patching.dims


def _with_effect(effect: xr.Dataset, name: str) -> xr.Dataset:
    """The pairs whose runs differ.

    Raises:
        StepError: when there is none.
    """
    cells = [dim for dim in effect[name].dims if dim != "pair"]
    kept = effect.isel(pair=effect[name].notnull().all(cells).values)
    if not kept.sizes["pair"]:
        raise StepError(
            f"patching_heatmap: {name} is NaN for all pairs: their clean and corrupted runs have the same "
            "value. Draw another metric, or give other pairs"
        )
    return kept


def _panels(effect: xr.DataArray, by_head: bool) -> Iterator[tuple[str, xr.DataArray]]:
    """Title and cells of each panel: of heads one a site, of tokens one a layer, and one a frame of clips."""
    if "site" in effect.dims:
        for site in effect["site"].values:
            for title, cells in _panels(effect.sel(site=site, drop=True), by_head):
                yield (f"{site}, {title.lower()}" if title else str(site)), cells
        return
    if by_head:
        yield "", effect.transpose("layer", "head")
        return
    for layer in effect["layer"].values:
        cells = effect.sel(layer=layer)
        if "patch_frame" not in effect.coords:
            yield f"Layer {layer}", cells
            continue
        places = effect["patch_frame"].values
        for number in sorted({*places.tolist()} - {-1}):
            # What has no place in the clip stands beside its first frame.
            here = (places == number) | ((places == -1) & (number == 0))
            yield f"Layer {layer}, frame {number}", cells.isel(token=here)


def _norm(effect: xr.DataArray, direction: str | None) -> Normalize:
    """The colour scale, symmetric about the value of a cell without effect."""
    from matplotlib.colors import Normalize

    if direction not in NO_EFFECT:
        raise StepError(
            f"patching_heatmap: the attribute 'direction' is {direction!r}, expected {' or '.join(NO_EFFECT)}"
        )
    centre = NO_EFFECT[direction]
    reach = float(abs(effect - centre).max()) or 1.0
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
    if aside.size:
        panel.imshow(aside.values[:, None], extent=(ASIDE, ASIDE + 1, top + aside.size, top), **look)
    _outline(panel, 0, 0, columns, rows)
    for place in range(aside.size):
        _outline(panel, ASIDE, top + place, 1, 1)
    if aside.size:
        panel.text(ASIDE + 0.5, top - 0.2, _aside_name(aside), ha="center", va="bottom", fontsize=5)
    panel.set(xlim=(ASIDE - 0.1, columns + 0.1), ylim=(rows + 0.1, -0.1))
    panel.set_axis_off()


def _draw_heads(panel: Axes, cells: xr.DataArray, norm: Normalize) -> None:
    from matplotlib.ticker import MaxNLocator

    layers, heads = cells["layer"].values, cells["head"].values
    extent = (heads[0] - 0.5, heads[-1] + 0.5, layers[-1] + 0.5, layers[0] - 0.5)
    panel.imshow(cells.values, extent=extent, norm=norm, cmap="RdBu_r", origin="upper")
    panel.set(xlabel="Head", ylabel="Layer")
    panel.grid(visible=False)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))


def _aside_name(aside: xr.DataArray) -> str:
    """What the cells beside the grid are, from the top."""
    return "CLS" if aside.size == 1 else "CLS,\nreg."


def _outline(panel: Axes, left: float, top: float, width: float, height: float) -> None:
    from matplotlib.patches import Rectangle

    panel.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor="0.4", linewidth=0.4))


def _caption(patching: xr.Dataset, n_pairs: int, by_head: bool) -> str:
    runs = ("clean", "corrupted")
    put, into = runs if patching.attrs["direction"] == "denoising" else runs[::-1]
    site = patching.attrs.get("site", "resid_pre")
    names = [MEANINGS[name].long_name for name in ([site] if isinstance(site, str) else site)]
    left_out = patching.sizes["pair"] - n_pairs
    without = f" ({left_out} more have two runs of the same value)" if left_out else ""
    return (
        f"Activation patching: {' or '.join(names)} of each layer, at one {'head' if by_head else 'token'}, "
        f"from the {put} run in the {into} run. Mean over {n_pairs} pairs{without}; 1 is the clean run, 0 "
        "the corrupted one."
    )
