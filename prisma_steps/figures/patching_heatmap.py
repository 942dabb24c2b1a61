"""Which token or head of which layer carries the answer: effects of activation patching."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Literal

from prisma_steps.figures.average import average, frame, largest_error
from prisma_steps.figures.patch_grid import frames_of, require_tokens
from prisma_steps.figures.patching_panels import Panel, draw_panel, panels_of
from prisma_steps.figures.style import FigureParams, Plot, figure, require, select, subplots
from prisma_steps.schema import MEANINGS, Patching
from prisma_steps.step import Field, StepError

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

OF = "patching_heatmap"

#: What is drawn, as the scale calls it.
NAMES = {"logit_difference": "logit difference", "probability": "probability", "ce": "CE", "kl": "KL"}

#: Panels in one row, by width: maps, and tables whose columns are tokens; and the most heads or frames that
#: are a row by themselves.
PER_ROW = {"one_column": 3, "two_columns": 6}
TABLES_PER_ROW = {"one_column": 1, "two_columns": 2}
MOST_PER_ROW = {"one_column": 4, "two_columns": 9}

#: Value of a cell without any effect: the corrupted run when clean is patched in, the clean run in reverse.
NO_EFFECT = {"denoising": 0.0, "noising": 1.0}

#: Width of a panel in inches, at most.
WIDEST = 1.8

#: Heights of a panel's title, of that with a table's ticks and label, and of the colour bar with its label;
#: of a row of a table by token, and of such a table at least and at most; in inches.
TITLE, TICKS, BAR = 0.2, 0.5, 0.55
ROW, LOWEST, HIGHEST = 0.16, 0.5, 2.2


class Params(FigureParams):
    """Settings of the patching heat map."""

    metric: Literal["logit_difference", "probability", "ce", "kl"] = Field(
        "logit_difference", description="which effect, normalised", json_schema_extra={"as_before": True}
    )
    view: Literal["patch_grid", "tokens"] = Field(
        "patch_grid",
        description="where tokens are patched: patch_grid is a map of the patches for every layer; tokens is "
        "layers × tokens",
    )
    layers: list[int] | None = Field(None, min_length=1, description="layers to draw; all when null")
    heads: list[int] | None = Field(None, min_length=1, description="heads to draw; all when null")
    width: Literal["one_column", "two_columns"] = Field(
        "two_columns", description="width in print: one column is 3.5 inches, two are 7.2"
    )


@figure(inputs={"patching": Patching})
def patching_heatmap(patching: xr.Dataset, params: Params) -> Plot:
    """Draw the mean effect of every patched cell: on the patch grid, or layers × tokens, heads or frames.

    Where tokens are patched one by one, every layer (and head, and frame of clips) is a map of its patches
    with CLS beside it or, with ``view: tokens``, a row. Several sites have panels of their own. Pairs whose
    clean and corrupted run have the same value, so that nothing can be restored, are left out. Colours are
    centred on the value of a cell without any effect: 0 (the corrupted run) in denoising, 1 (the clean run)
    in noising.

    Raises:
        StepError: when the metric, a layer or a head is not there, and when no pair has an effect.
    """
    name = f"normalised_{params.metric}"
    require(patching, name, "pair", "layer", of=OF)
    if "token" in patching.dims:
        require_tokens(patching, of=OF)
    asked = {"layer": params.layers, "head": params.heads}
    kept = _with_effect(select(patching[[name]], asked, of=OF), name)
    effect, n_pairs = average(kept, "pair"), kept.sizes["pair"]
    norm = _norm(effect[name], patching.attrs.get("direction"))
    drawing, axes = _page(effect[name], panels := list(panels_of(effect[name], params.view)), params)
    for place, panel in zip(axes, panels, strict=True):
        draw_panel(place, panel, norm)
    label = f"Normalised {NAMES[params.metric]}, n = {n_pairs} pairs\n(clean = 1, corrupted = 0)"
    drawing.colorbar(axes[0].images[0], ax=list(axes), location="bottom", aspect=40, shrink=0.7, label=label)
    return Plot(drawing, frame(effect), _caption(patching, effect, n_pairs))


def _with_effect(effect: xr.Dataset, name: str) -> xr.Dataset:
    """The pairs whose runs differ.

    Raises:
        StepError: when there is none.
    """
    cells = [dim for dim in effect[name].dims if dim != "pair"]
    kept = effect.isel(pair=effect[name].notnull().all(cells).values)
    if not kept.sizes["pair"]:
        raise StepError(
            f"{OF}: {name} is NaN for all pairs: their clean and corrupted runs have the same "
            "value. Draw another metric, or give other pairs"
        )
    return kept


def _norm(effect: xr.DataArray, direction: str | None) -> Normalize:
    """The colour scale, symmetric about the value of a cell without effect."""
    from matplotlib.colors import Normalize

    if direction not in NO_EFFECT:
        raise StepError(
            f"{OF}: the attribute 'direction' is {direction!r}, expected {' or '.join(NO_EFFECT)}"
        )
    centre = NO_EFFECT[direction]
    reach = float(abs(effect - centre).max()) or 1.0
    return Normalize(centre - reach, centre + reach)


def _page(effect: xr.DataArray, panels: Sequence[Panel], params: Params) -> tuple[Figure, np.ndarray]:
    """A figure with axes for every panel, as high as they need."""
    by_token = not panels[0].is_map and "token" in effect.dims
    per_row = _per_row(effect, panels, params)
    rows = ceil(len(panels) / per_row)
    if by_token:
        height = min(max(ROW * effect.sizes["layer"], LOWEST), HIGHEST)
    else:
        height = max(panel.aspect for panel in panels) * min(params.inches / per_row, WIDEST)
    height = rows * (height + (TITLE if panels[0].is_map else TICKS)) + BAR
    layout = "constrained" if by_token else "compressed"
    drawing, axes = subplots(params.inches, height, rows, per_row, layout=layout)
    for left_over in axes.flat[len(panels) :]:
        left_over.remove()
    return drawing, axes.ravel()[: len(panels)]


def _per_row(effect: xr.DataArray, panels: Sequence[Panel], params: Params) -> int:
    """Panels in a row: all frames of a layer, or all its heads, where they fit."""
    if not panels[0].is_map:
        most = TABLES_PER_ROW if "token" in effect.dims else PER_ROW
        return _balanced(len(panels), most[params.width])
    n_frames, n_heads = len(frames_of(effect)), effect.sizes.get("head", 1)
    natural = n_frames if n_frames > 1 else n_heads
    together = 1 < natural <= MOST_PER_ROW[params.width]
    return natural if together else _balanced(len(panels), PER_ROW[params.width])


def _balanced(count: int, most: int) -> int:
    """Panels in a row, of no more rows than needed, as equally long as can be."""
    return ceil(count / ceil(count / most))


def _caption(patching: xr.Dataset, effect: xr.Dataset, n_pairs: int) -> str:
    runs = ("clean", "corrupted")
    put, into = runs if patching.attrs["direction"] == "denoising" else runs[::-1]
    site = patching.attrs.get("site", "resid_pre")
    names = [MEANINGS[name].long_name for name in ([site] if isinstance(site, str) else site)]
    left_out = patching.sizes["pair"] - n_pairs
    without = f" ({left_out} more have two runs of the same value)" if left_out else ""
    return (
        f"Activation patching: {' or '.join(names)} of each layer, {_where(patching)}, from the {put} run in "
        f"the {into} run. Mean over {n_pairs} pairs{without}{largest_error(effect)}; 1 is the clean run, 0 "
        "the corrupted one."
    )


def _where(patching: xr.Dataset) -> str:
    """What is patched at once."""
    if "patch_frame" in patching.dims:
        so_far = patching.attrs.get("together") == "frames_so_far"
        return f"at all tokens of one frame{' and of those before it' if so_far else ''}"
    cells = [dim for dim in ("head", "token") if dim in patching.dims]
    return "at " + " and ".join(f"one {cell}" for cell in cells)
