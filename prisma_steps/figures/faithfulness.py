"""What figures of faithfulness share: circuits beside random ones, and beside all that they leave out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prisma_steps.figures.average import average, frame
from prisma_steps.figures.curves import draw_band
from prisma_steps.figures.encoding import GridParams, encode
from prisma_steps.figures.style import STANDARD_ERROR, log_ticks, require, subplots
from prisma_steps.step import Field

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Height of a panel, in inches.
HEIGHT = 2.2

FAITHFULNESS = "faithfulness"

#: What is run, and the variable that holds its faithfulness.
RUNS = {
    "circuit": FAITHFULNESS,
    "random": f"{FAITHFULNESS}_random",
    "all but the circuit": f"{FAITHFULNESS}_complement",
}

#: By the dim along circuits: what counts what they have, and how an axis and a caption call that.
SIZES = {
    "n_edges": ("n_edges_kept", "Edges of the circuit", "their number of edges"),
    "n_nodes": ("n_nodes", "Latents and error terms of the circuit", "how many of these they have"),
}

#: What is explained, as captions call it.
METRICS = {"logit_difference": "the logit difference", "kl_to_clean": "the KL divergence from the clean run"}

#: How edges were scored, as captions call it.
METHODS = {"exact": "path patching", "eap": "EAP", "eap_ig": "EAP-IG"}


class FaithfulnessParams(GridParams):
    """Settings of curves of faithfulness."""

    style: str | None = Field(
        "run",
        description="shown by line style: run (circuit, random, all but the circuit), or a grid axis",
    )


def draw_curves(
    circuit: xr.Dataset, params: FaithfulnessParams, dim: str, of: str
) -> tuple[Figure, pd.DataFrame]:
    """A line for each ablation, point of the grid and run, against the size of the circuits; the points.

    Bands are ± one standard error: over seeds where there are several, else over random circuits.

    Args:
        circuit: circuits of a grid.
        params: how the grid is shown.
        dim: along circuits of several sizes, one of ``SIZES``.
        of: name of the figure.

    Raises:
        StepError: when a variable is missing, or there are more axes than can be shown.
    """
    size, label, _ = SIZES[dim]
    require(circuit, *RUNS.values(), "ablation", "control", dim, size, of=of)
    shown = _by_run(circuit, size)
    encoding = encode(shown[[FAITHFULNESS]], _told_apart(shown, params, dim), inner=(dim,), of=of)
    points = frame(shown).dropna(subset=[FAITHFULNESS])
    panels = encoding.panels
    drawing, axes = subplots(params.inches, HEIGHT, 1, len(panels), sharex=True, sharey=True)
    for line in encoding.lines(points):
        _draw(axes[0, line.panel], line.points.sort_values(dim), line.look, size)
    for panel, title in zip(axes[0], panels, strict=True):
        panel.set(title=title, xlabel=label)
        _finish(panel, points[size].to_numpy())
    axes[0, 0].set_ylabel("Faithfulness")
    encoding.legend(drawing)
    return drawing, points


def _by_run(circuit: xr.Dataset, size: str) -> xr.Dataset:
    """Mean faithfulness with its standard error along ``run``, and the size of the circuits."""
    import numpy as np
    import xarray as xr

    parts: list[xr.Dataset] = []
    for run, name in RUNS.items():
        if not circuit[name].size:  # no random circuits were drawn
            continue
        mean = average(average(circuit[[name]], "control"), "seed")
        error = mean.get(f"{name}{STANDARD_ERROR}", mean[name] * np.nan)
        part = xr.Dataset({FAITHFULNESS: mean[name], f"{FAITHFULNESS}{STANDARD_ERROR}": error})
        parts.append(part.assign_coords(run=run))
    together = xr.concat(parts, "run")
    if size not in circuit.data_vars:
        return together
    return together.assign({size: average(circuit[[size]], "seed")[size]})


def _told_apart(shown: xr.Dataset, params: FaithfulnessParams, dim: str) -> FaithfulnessParams:
    """Runs by colour where nothing else needs it."""
    alone = all(shown.sizes[axis] == 1 for axis in shown[FAITHFULNESS].dims if axis not in ("run", dim))
    if alone and params.hue is None and params.style == "run":
        return params.model_copy(update={"hue": "run", "style": None})
    return params


def _draw(panel: Axes, line: pd.DataFrame, look: dict, size: str) -> None:
    at, mean = line[size], line[FAITHFULNESS]
    panel.plot(at, mean, **look)
    error = line[f"{FAITHFULNESS}{STANDARD_ERROR}"]
    draw_band(panel, at, mean, error if error.notna().to_numpy().any() else None, look["color"])


def _finish(panel: Axes, sizes: np.ndarray) -> None:
    """Levels of the whole model and of nothing, and numbers of edges or latents on a log axis."""
    for level in (0, 1):
        panel.axhline(level, color="0.5", linestyle=":", linewidth=0.8, zorder=1)
    if sizes.min() >= 1:
        panel.set_xscale("log")
        log_ticks(panel.xaxis)
    else:  # a circuit of which nothing leads to the logits
        panel.set_xscale("symlog", linthresh=1, linscale=0.3)
        panel.set_xticks([0, *(10**power for power in range(len(str(int(sizes.max())))))])
        panel.set_xlim(left=-0.3)
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def caption(circuit: xr.Dataset, dim: str, of_what: str) -> str:
    """What is to be seen, with the number of pairs."""
    metric = METRICS.get(circuit.attrs.get("metric", ""), "the metric")
    pairs = f", mean over {circuit.attrs['n_pairs']} pairs" if "n_pairs" in circuit.attrs else ""
    seeds, controls = circuit.sizes.get("seed", 1), circuit.sizes["control"]
    over = f"{seeds} seeds" if seeds > 1 else f"{controls} random circuits of a size"
    random = " Random circuits are as large as those found." if controls else ""
    bands = f" Bands: ± 1 standard error over {over}." if max(seeds, controls) > 1 else ""
    return (
        f"Faithfulness of {of_what} to {metric} against {SIZES[dim][2]}{pairs}: 1 (dotted) is the whole "
        f"model, 0 the model with everything ablated.{random}{bands}"
    )
