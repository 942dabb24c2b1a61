"""How often the latents of dictionaries fire, and how many never do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prisma_steps.figures.average import frame
from prisma_steps.figures.encoding import Encoding, GridParams, encode
from prisma_steps.figures.style import Plot, axis_label, figure, require, subplots
from prisma_steps.schema import Quality
from prisma_steps.step import Field, StepError, gather

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes

#: Height of a figure, in inches.
HEIGHT = 2.2

#: A latent that fires on a larger share of the tokens is dense.
DENSE = 0.1

#: Width of the place of the dead, left of the axis of frequencies, as a share of that axis.
DEAD_WIDTH = 0.22


class Params(GridParams):
    """Settings of the histogram."""

    bins_per_decade: int = Field(4, gt=0, description="bins of the histogram per factor of ten")


@figure(inputs={"quality": gather(Quality)})
def firing_frequencies(quality: xr.Dataset, params: Params) -> Plot:
    """Plot what share of the latents fires how often, on a log axis; the dead are a bar at its left.

    Seeds are pooled. The dotted line is at 10 % of the tokens, above which a latent is dense.

    Raises:
        StepError: when there are no firing frequencies, or no latent fires.
    """
    require(quality, "firing_frequency", "latent", of="firing_frequencies")
    frequency = quality[["firing_frequency"]]
    edges = _edges(frequency["firing_frequency"].values, params.bins_per_decade)
    shown = _histogram(frequency, edges)
    encoding = encode(shown, params, inner=("bin",), of="firing_frequencies")
    points, panels = frame(shown), encoding.panels
    drawing, axes = subplots(params.inches, HEIGHT, 1, len(panels), sharex=True, sharey=True)
    _draw(axes[0], encoding, points, edges)
    for panel, title in zip(axes[0], panels, strict=True):
        panel.set_title(title)
        _name_frequencies(panel, edges)
    axes[0, 0].set_ylabel("Share of the latents (%)")
    drawing.supxlabel(axis_label(quality, "firing_frequency"), fontsize=7)
    encoding.legend(drawing, markers=False)
    return Plot(drawing, points, _caption(quality))


def _edges(frequency: np.ndarray, per_decade: int) -> np.ndarray:
    """Edges of the bins, as log10, from below the rarest latent that fires to 0, which is every token."""
    import numpy as np

    fires = frequency[frequency > 0]
    if not fires.size:
        raise StepError("firing_frequencies: no latent of any dictionary fires: there is nothing to count")
    n_bins = max(per_decade, int(np.ceil(-np.log10(fires.min()) * per_decade)))
    return np.arange(-n_bins, 1) / per_decade


def _histogram(frequency: xr.Dataset, edges: np.ndarray) -> xr.Dataset:
    """Share in percent and number of the latents of every dictionary in each bin; bin −1 is of the dead."""
    import numpy as np
    import xarray as xr

    def count(of_latents: np.ndarray) -> np.ndarray:
        known = of_latents[~np.isnan(of_latents)]
        fires = known[known > 0]
        # A share that rounds to the outermost edges belongs to the bins inside.
        logs = np.clip(np.log10(fires), edges[0], edges[-1])
        return np.concatenate([[len(known) - len(fires)], np.histogram(logs, edges)[0]])

    pooled = [dim for dim in ("seed", "latent") if dim in frequency.dims]
    flat = frequency["firing_frequency"].stack(each=pooled)
    counts = xr.apply_ufunc(
        count, flat, input_core_dims=[["each"]], output_core_dims=[["bin"]], vectorize=True
    )
    low = np.concatenate([[0.0], 10 ** edges[:-1]])
    return xr.Dataset(
        {"latents_in_bin": counts, "share_in_bin": 100 * counts / counts.sum("bin")},
        {"bin": np.arange(-1, len(edges) - 1), "frequency_from": ("bin", low)},
    )


def _draw(panels: np.ndarray, encoding: Encoding, points: pd.DataFrame, edges: np.ndarray) -> None:
    lines = list(encoding.lines(points))
    room = DEAD_WIDTH * -edges[0]
    per_panel = max(1, len(lines) // len(panels))
    width = 0.9 * room / per_panel
    drawn = [0] * len(panels)
    for line in lines:
        panel, look = panels[line.panel], {**line.look}
        look.pop("marker")
        of_bins = line.points.sort_values("bin")
        panel.stairs(of_bins["share_in_bin"].values[1:], edges, linewidth=1.0, **look)
        dead, n_dead = of_bins["share_in_bin"].values[0], int(of_bins["latents_in_bin"].values[0])
        left = edges[0] - 0.95 * room + drawn[line.panel] * width
        inside = {"facecolor": (*look["color"][:3], 0.4), "edgecolor": look["color"]}
        panel.bar(left, dead, 0.8 * width, align="edge", **inside, linestyle=look["linestyle"], linewidth=0.8)
        panel.annotate(
            f"{n_dead:,}", (left + width / 2, dead), (0, 1), textcoords="offset points",
            ha="center", va="bottom", fontsize=5, rotation=90 if per_panel > 1 else 0,
        )  # fmt: skip
        drawn[line.panel] += 1


def _name_frequencies(panel: Axes, edges: np.ndarray) -> None:
    import numpy as np

    decades = np.arange(int(np.ceil(edges[0] * 0.95)), 1)
    panel.axvline(np.log10(DENSE), color="0.4", linestyle=":", linewidth=0.8)
    panel.axvline(edges[0], color="0.8", linewidth=0.6)
    dead = edges[0] * (1 + DEAD_WIDTH / 2)
    texts = [f"$10^{{{decade}}}$" if decade < 0 else "1" for decade in decades]
    panel.set_xticks([dead, *decades], ["dead", *texts])
    panel.grid(axis="x", visible=False)
    panel.set_xlim(edges[0] * (1 + DEAD_WIDTH), 0)
    panel.margins(y=0.12)
    panel.set_ylim(bottom=0)


def _caption(quality: xr.Dataset) -> str:
    seeds = quality.sizes.get("seed", 1)
    pooled = f" Latents of {seeds} seeds are counted together." if seeds > 1 else ""
    return (
        f"How often latents fire: share of the latents of dictionaries with {quality.sizes['latent']:,} "
        "latents by the share of tokens on which they fire. Left: those that never fire, with their number. "
        f"Dotted: 10 % of the tokens, above which a latent is dense.{pooled}"
    )
