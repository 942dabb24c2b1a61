"""Where the answer appears: the correct class by the logit lens, layers × tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prisma_steps.figures.average import average, frame
from prisma_steps.figures.patch_grid import require_tokens
from prisma_steps.figures.style import FigureParams, Plot, axis_label, figure, require, subplots
from prisma_steps.schema import Lens
from prisma_steps.step import Field

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

#: Height of the figure, in inches.
HEIGHT = 2.2


class Params(FigureParams):
    """What to show of every token."""

    measure: Literal["correct_probability", "correct_logit", "correct_rank", "ce"] = Field(
        "correct_probability", description="the number that is shown of every layer and token"
    )


@figure(inputs={"lens": Lens})
def lens_heatmap(lens: xr.Dataset, params: Params) -> Plot:
    """Draw the mean over images of how the lens rates the correct class, layers × tokens.

    Raises:
        StepError: when the lens was made without the correct class.
    """
    require(lens, params.measure, "image", "layer", "token", of="lens_heatmap")
    require_tokens(lens, of="lens_heatmap")
    data = lens[[params.measure]]
    shown = average(data, "image")
    drawing, axes = subplots(params.inches, HEIGHT)
    panel = axes[0, 0]
    drawn = panel.imshow(
        shown[params.measure].transpose("layer", "token").values,
        cmap="viridis",
        aspect="auto",
        origin="lower",
    )
    _label(panel, lens)
    drawing.colorbar(drawn, ax=panel, label=axis_label(lens, params.measure))
    of = f"mean of {lens.sizes['image']} images"
    caption = (
        f"Logit lens: {axis_label(lens, params.measure)} when the head reads each token alone, {of}. Layer 0 "
        f"is the embedding, layer {int(lens['layer'][-1])} the end."
    )
    return Plot(drawing, frame(shown), caption)


def _label(panel: Axes, lens: xr.Dataset) -> None:
    """Layers up; of the tokens, those that are no patches by name, then the first patch of every frame."""
    kinds = lens["token_kind"].values.tolist()
    patches = [place for place, kind in enumerate(kinds) if kind == "patch"]
    aside = {place: kind for place, kind in enumerate(kinds) if kind != "patch"}
    if len(aside) > 1:  # registers: the first alone, or their names would overlap
        aside = {place: kind for place, kind in aside.items() if kinds.index(kind) == place}
    names = {place: "CLS" if kind == "cls" else kind for place, kind in aside.items()}
    panel.set_xticks(
        [*names, patches[len(patches) // 2]], [*names.values(), f"{len(patches)} patches"], fontsize=5
    )
    panel.axvline(patches[0] - 0.5, color="white", linewidth=0.6)
    panel.set_yticks(range(lens.sizes["layer"]), [str(layer) for layer in lens["layer"].values])
    panel.set(xlabel="Token", ylabel="Layer")
    panel.grid(False)
