"""How well dictionaries reconstruct at how many active latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prisma_steps.figures.average import average, frame
from prisma_steps.figures.encoding import GridParams, encode
from prisma_steps.figures.style import STANDARD_ERROR, Plot, axis_label, figure, log_ticks, require, subplots
from prisma_steps.schema import Quality
from prisma_steps.step import Field, StepError, gather

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes

#: Parameters that set how sparse a dictionary is: a line runs along the first of them that is a grid axis.
SPARSITY = ("sparsity", "l1_coefficient", "l0_coefficient", "k")

#: Height of a panel, in inches.
HEIGHT = 2.4


class Params(GridParams):
    """Settings of the Pareto plot."""

    token_kind: Literal["all", "cls", "patch"] = Field("all", description="tokens that L0 and FVU are of")
    along: str | None = Field(
        None, description="grid axis that lines run along; the one that sets the sparsity when null"
    )
    y: Literal["fvu", "explained_variance", "mse", "ce_recovered"] = Field(
        "fvu", description="measure of the reconstruction"
    )


@figure(inputs={"quality": gather(Quality)})
def sae_pareto(quality: xr.Dataset, params: Params) -> Plot:
    """Plot the quality of reconstruction against L0, with a line along the sparsity of each dictionary.

    Seeds are averaged; error bars are ± one standard error.

    Raises:
        StepError: when a measure, the tokens or the axis are missing, or an L0 of 0 would be on a log axis.
    """
    require(quality, "l0", params.y, "token_kind", of="sae_pareto")
    shown = average(_of_tokens(quality[["l0", params.y]], params.token_kind), "seed")
    if not bool((shown["l0"] > 0).all()):
        raise StepError(
            "sae_pareto: the L0 of some dictionaries is 0 or missing, which has no place on a log axis. They "
            "never fire: lower their sparsity coefficient, or select the others."
        )
    along = _line_axis(shown, params)
    encoding = encode(shown, params, inner=(along,) if along else (), of="sae_pareto")
    points = frame(shown)
    panels = encoding.panels
    drawing, axes = subplots(params.inches, HEIGHT, 1, len(panels), sharex=True, sharey=True)
    for line in encoding.lines(points):
        _draw(
            axes[0, line.panel], line.points.sort_values("l0"), line.look, params.y, joined=along is not None
        )
    for panel, title in zip(axes[0], panels, strict=True):
        panel.set(title=title, xscale="log", xlabel=axis_label(quality, "l0"))
        log_ticks(panel.xaxis)
    axes[0, 0].set_ylabel(axis_label(quality, params.y))
    encoding.legend(drawing)
    return Plot(drawing, points, _caption(quality, params))


def _of_tokens(quality: xr.Dataset, token_kind: str) -> xr.Dataset:
    kinds = quality["token_kind"].values.tolist()
    if token_kind not in kinds:
        raise StepError(
            f"sae_pareto: token_kind is {token_kind!r}, the data has {', '.join(map(str, kinds))}"
        )
    return quality.sel(token_kind=token_kind)


def _line_axis(shown: xr.Dataset, params: Params) -> str | None:
    if params.along is None:
        return next((axis for axis in SPARSITY if axis in shown.dims), None)
    if params.along not in shown.dims:
        there = ", ".join(map(str, shown.dims)) or "none"
        raise StepError(f"sae_pareto: along is {params.along!r}, but the grid axes are {there}")
    return params.along


def _draw(panel: Axes, points: pd.DataFrame, look: dict, y: str, joined: bool) -> None:
    errors = {
        direction: points.get(name + STANDARD_ERROR) for direction, name in (("xerr", "l0"), ("yerr", y))
    }
    look = look if joined else {**look, "linestyle": "none"}
    panel.errorbar(points["l0"], points[y], **errors, **look, elinewidth=0.8, capsize=1.5)


def _caption(quality: xr.Dataset, params: Params) -> str:
    seeds = quality.sizes.get("seed", 1)
    averaged = f" Mean of {seeds} seeds, bars ± 1 standard error." if seeds > 1 else ""
    tokens = {"all": "all tokens", "cls": "CLS tokens", "patch": "patch tokens"}[params.token_kind]
    return f"{axis_label(quality, params.y)} against L0 of sparse autoencoders, on {tokens}.{averaged}"
