"""Whether two dictionaries have the same latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prisma_steps.figures.style import FigureParams, Plot, figure, require, subplots
from prisma_steps.schema import Similarity
from prisma_steps.step import Field

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Height of a figure by its width, in inches.
HEIGHT = {"one_column": 5.0, "two_columns": 2.9}

SIDES = (("first", "#0173b2"), ("second", "#de8f05"))


class Params(FigureParams):
    """Settings of the comparison."""

    width: Literal["one_column", "two_columns"] = Field(
        "two_columns", description="width in print: one column is 3.5 inches, two are 7.2"
    )
    bins: int = Field(40, gt=1, description="bins of the histogram, from cosine −1 or the lowest to 1")
    first_name: str = Field("the first", description="what the first dictionary is called")
    second_name: str = Field("the second", description="what the second dictionary is called")


@figure(inputs={"similarity": Similarity})
def decoder_similarity(similarity: xr.Dataset, params: Params) -> Plot:
    """Draw the cosines between decoder rows as a map, and how near the nearest row is for each latent.

    Raises:
        StepError: when the map or the cosines are missing.
    """
    require(similarity, "cosine_map", "first_max_cosine", "second_max_cosine", of="decoder_similarity")
    stacked = params.width == "one_column"
    shape = (2, 1) if stacked else (1, 2)
    ratios = {"height_ratios" if stacked else "width_ratios": [1.3, 1]}
    drawing, axes = subplots(params.inches, HEIGHT[params.width], *shape, gridspec_kw=ratios)
    _draw_map(drawing, axes.flat[0], similarity, params)
    counts = _histogram(similarity, params.bins)
    _draw_histogram(axes.flat[1], counts, similarity, params)
    return Plot(drawing, _numbers(similarity, counts), _caption(similarity, params))


def _draw_map(drawing: Figure, panel: Axes, similarity: xr.Dataset, params: Params) -> None:
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    cells = similarity["cosine_map"].transpose("first_cell", "second_cell").values
    n_first, n_second = (similarity.sizes[f"{side}_latent"] for side, _ in SIDES)
    # Cosines below 0 are of no interest here: they are as dark as 0.
    shown = panel.imshow(
        np.clip(cells, 0, 1), "viridis", vmin=0, vmax=1, extent=(0, n_second, n_first, 0), aspect="auto"
    )
    same = bool(similarity.attrs["itself"])
    panel.set_ylabel(f"Latent of {params.first_name} (ordered)" if not same else "Latent (ordered)")
    panel.set_xlabel(f"Latent of {params.second_name} (ordered)" if not same else "Latent (ordered)")
    panel.grid(False)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(4, integer=True))
    drawing.colorbar(shown, ax=panel, label="Cosine of decoder rows", fraction=0.05, pad=0.02)


def _histogram(similarity: xr.Dataset, bins: int) -> pd.DataFrame:
    """Share in percent of the latents of each side by the cosine to the nearest row of the other."""
    import numpy as np
    import pandas as pd

    values = {side: similarity[f"{side}_max_cosine"].values for side, _ in SIDES}
    low = min(0.0, *(float(of_side.min()) for of_side in values.values()))
    edges = np.linspace(low, 1, bins + 1)
    columns = {}
    for side, of_side in values.items():
        # Rounding may leave a cosine just above 1.
        columns[side] = 100 * np.histogram(of_side.clip(max=1), edges)[0] / len(of_side)
    return pd.DataFrame({"cosine_from": edges[:-1], "cosine_to": edges[1:], **columns})


def _draw_histogram(panel: Axes, counts: pd.DataFrame, similarity: xr.Dataset, params: Params) -> None:
    edges = [*counts["cosine_from"], counts["cosine_to"].iloc[-1]]
    sides = SIDES[:1] if similarity.attrs["itself"] else SIDES
    for (side, color), style in zip(sides, ("-", (0, (4, 1.5))), strict=False):
        matched = 100 * float(similarity[f"{side}_matched_share"])
        name = "all latents" if similarity.attrs["itself"] else getattr(params, f"{side}_name")
        label = f"{name}: {matched:.0f} % matched"
        panel.stairs(counts[side], edges, color=color, linestyle=style, linewidth=1.2, label=label)
    panel.axvline(similarity.attrs["threshold"], color="0.4", linestyle=":", linewidth=0.8)
    panel.set(xlim=(edges[0], 1), ylim=(0, None), ylabel="Share of the latents (%)")
    panel.set_xlabel("Cosine to the nearest row")
    panel.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handlelength=1.5)


def _numbers(similarity: xr.Dataset, counts: pd.DataFrame) -> pd.DataFrame:
    """Cells of the map, then bins of the histogram."""
    import pandas as pd

    cells = similarity["cosine_map"].rename("cosine_map").to_dataframe().reset_index()
    cells = cells[["first_cell", "second_cell", "cosine_map"]]
    bins = counts.rename(columns={side: f"{side}_share_of_latents" for side, _ in SIDES})
    return pd.concat([cells.assign(panel="map"), bins.assign(panel="histogram")], ignore_index=True)


def _caption(similarity: xr.Dataset, params: Params) -> str:
    n_first, n_second = (similarity.sizes[f"{side}_latent"] for side, _ in SIDES)
    threshold = similarity.attrs["threshold"]
    if similarity.attrs["itself"]:
        return (
            f"Cosines between the {n_first:,} decoder rows of one dictionary, alike ones together, and the "
            f"cosine of each to its nearest. Dotted: {threshold:g}."
        )
    return (
        f"Cosines between the decoder rows of two dictionaries ({params.first_name}: {n_first:,}, "
        f"{params.second_name}: {n_second:,} latents); mutual nearest neighbours stand on the diagonal, the "
        f"closest first. Right: cosine of each latent to the nearest of the other; dotted: {threshold:g}, "
        "above which it is matched."
    )
