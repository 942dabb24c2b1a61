"""How many latents of a dictionary are dead, alive or dense."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prisma_steps.figures.average import average, frame
from prisma_steps.figures.encoding import names
from prisma_steps.figures.style import STANDARD_ERROR, FigureParams, Plot, figure, require, subplots
from prisma_steps.schema import Quality
from prisma_steps.step import Field, StepError, gather

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Height of a figure, in inches.
HEIGHT = 2.1

#: Width of a bar, where bars are 1 apart.
BAR = 0.7

#: Variable, name and colour of each part of a bar, from below.
PARTS = (
    ("dead_percent", "dead: never fire", "0.75"),
    ("sparse_percent", "alive", "#0173b2"),
    ("dense_percent", "dense: fire on\n> 10 % of tokens", "#de8f05"),
)


class Params(FigureParams):
    """Settings of the bars."""

    along: str | None = Field(None, description="grid axis that bars stand along; the last axis when null")
    columns: str | None = Field(None, description="grid axis shown by panels; the other axis when null")


@figure(inputs={"quality": gather(Quality)})
def latent_states(quality: xr.Dataset, params: Params) -> Plot:
    """Plot the shares of dead, alive and dense latents as stacked bars along a grid axis.

    Seeds are averaged; bars at the borders of parts are ± one standard error of the part that ends there.

    Raises:
        StepError: when the shares are missing, or there is no such axis, or more axes than can be shown.
    """
    require(quality, "alive_latents", "dead_share", "dense_latents", of="latent_states")
    percent = _percent(quality)
    shown = average(percent, "seed")
    along, columns = _axes(shown, params)
    panels = [shown] if columns is None else [shown.isel({columns: i}) for i in range(shown.sizes[columns])]
    titles = [""] if columns is None else _titles(shown, columns)
    drawing, axes = subplots(params.inches, HEIGHT, 1, len(panels), sharex=True, sharey=True)
    for panel, part, title in zip(axes[0], panels, titles, strict=True):
        _draw(panel, part, along)
        panel.set_title(title)
    axes[0, 0].set(ylabel="Share of the latents (%)", ylim=(0, 100))
    _legend(drawing)
    return Plot(drawing, frame(shown), _caption(quality))


def _percent(quality: xr.Dataset) -> xr.Dataset:
    """Shares of the latents in percent, and where the part of the dense begins."""
    shares = {
        "dead_percent": 100 * quality["dead_share"],
        "sparse_percent": 100 * (quality["alive_latents"] - quality["dense_latents"]),
        "dense_percent": 100 * quality["dense_latents"],
    }
    percent = quality[[]].assign(shares)
    return percent.assign(dense_from=100 - percent["dense_percent"])


def _axes(shown: xr.Dataset, params: Params) -> tuple[str, str | None]:
    """The axis of the bars and that of the panels.

    Raises:
        StepError: for an axis that is not there, for a grid of one point, and for more axes than two.
    """
    there = [str(dim) for dim in shown.dims]
    for role, axis in (("along", params.along), ("columns", params.columns)):
        if axis is not None and axis not in there:
            raise StepError(
                f"latent_states: {role} is {axis!r}, but the grid axes are {', '.join(there) or 'none'}"
            )
    if not there:
        raise StepError(
            "latent_states: quality is of one dictionary, and bars stand along a grid axis. Give its node "
            "one, for instance layer: {grid: [0, 1, 2]} in train_sae."
        )
    free = [axis for axis in there if axis not in (params.along, params.columns)]
    along = params.along or free.pop()
    free = [axis for axis in free if shown.sizes[axis] > 1]
    columns = params.columns or (free.pop(0) if free else None)
    if free:
        raise StepError(
            f"latent_states: bars show two grid axes (along, columns), the data has {', '.join(there)}. "
            f"Select a point of {free[0]!r}: {{node: …, select: {{{free[0]}: …}}}}"
        )
    return along, columns


def _titles(shown: xr.Dataset, columns: str) -> list[str]:
    title, texts = names(shown, columns)
    return [f"{title}: {text}" for text in texts]


def _draw(panel: Axes, shares: xr.Dataset, along: str) -> None:
    import numpy as np

    shares = shares.squeeze([dim for dim in shares.dims if dim != along])
    title, texts = names(shares, along)
    places, bottom = np.arange(len(texts)), np.zeros(len(texts))
    for name, _, color in PARTS:
        values = shares[name].values
        panel.bar(places, values, BAR, bottom=bottom, color=color)
        bottom = bottom + values
    # Of the part in the middle nothing is drawn: what it ends at is where the others begin.
    for border in ("dead_percent", "dense_from"):
        if border + STANDARD_ERROR in shares:
            bars = {"yerr": shares[border + STANDARD_ERROR].values, "elinewidth": 0.8, "capsize": 1.5}
            panel.errorbar(places, shares[border].values, linestyle="none", color="0.1", **bars)
    panel.set_xticks(places, texts)
    panel.set_xlabel(title)
    panel.grid(axis="x", visible=False)


def _legend(drawing: Figure) -> None:
    from matplotlib.patches import Patch

    entries = [Patch(color=color, label=text) for _, text, color in reversed(PARTS)]
    drawing.legend(handles=entries, loc="outside right upper", handlelength=1)


def _caption(quality: xr.Dataset) -> str:
    seeds = quality.sizes.get("seed", 1)
    averaged = f" Mean of {seeds} seeds, bars ± 1 standard error." if seeds > 1 else ""
    return (
        f"Shares of the {quality.sizes['latent']:,} latents of each dictionary that are dead, alive, and "
        f"dense, that is alive on more than 10 % of the tokens.{averaged}"
    )
