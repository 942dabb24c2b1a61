"""What a latent does to the answer: the probability of classes against the strength of steering."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prisma_steps.figures.average import average, frame
from prisma_steps.figures.curves import draw_band
from prisma_steps.figures.latent_panels import colours, latent_panels
from prisma_steps.figures.style import STANDARD_ERROR, FigureParams, Plot, axis_label, figure, require
from prisma_steps.schema import Steering
from prisma_steps.step import Field, StepError

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours that can be told apart.
MOST_CLASSES = 10

MODES = {"clamp": "set to", "add": "raised by", "multiply": "multiplied by"}


class Params(FigureParams):
    """Settings of the curves."""

    classes: list[str] | None = Field(None, description="names of the classes to draw; all when null")


@figure(inputs={"steering": Steering})
def steering_curves(steering: xr.Dataset, params: Params) -> Plot:
    """Plot the mean probability of classes against the strength of steering, one panel a latent.

    Bands are ± one standard error over images; a dashed line is the probability in the clean run.

    Raises:
        StepError: when a class is not there, or there are more than colours.
    """
    require(steering, "probability", "clean_probability", "strength", "image", of="steering_curves")
    chosen = _of_classes(steering, params)
    shown = average(chosen[["probability", "clean_probability"]].sortby("strength"), "image")
    latents = shown["latent"].values
    drawing, axes = latent_panels(latents, params, sharey=True)
    for panel, latent in zip(axes.flat, latents, strict=False):
        _draw(panel, shown.sel(latent=latent))
    axes[0, 0].set_ylim(bottom=0)
    for row in axes:
        row[0].set_ylabel("Probability")
    drawing.supxlabel(axis_label(steering, "strength"), fontsize=7)
    _legend(drawing, shown, steering.sizes["image"])
    return Plot(drawing, frame(shown), _caption(steering))


def _of_classes(steering: xr.Dataset, params: Params) -> xr.Dataset:
    """The data of the classes to draw, along ``class`` in the order in which they are named."""
    names = steering["class_name"].values.tolist()
    wanted = names if params.classes is None else params.classes
    strange = [name for name in wanted if name not in names]
    if strange:
        raise StepError(
            f"steering_curves: no class {strange[0]!r}; the data has {', '.join(map(str, names))}"
        )
    if not 0 < len(wanted) <= MOST_CLASSES:
        raise StepError(
            f"steering_curves: {len(wanted)} classes, and colours tell up to {MOST_CLASSES} apart: name "
            "classes to draw"
        )
    return steering.isel({"class": [names.index(name) for name in wanted]})


def _draw(panel: Axes, of_latent: xr.Dataset) -> None:
    strength = of_latent["strength"].values
    for color, number in zip(colours(MOST_CLASSES), range(of_latent.sizes["class"]), strict=False):
        line = of_latent.isel({"class": number})
        mean = line["probability"].values
        panel.plot(strength, mean, color=color, marker="o")
        panel.axhline(float(line["clean_probability"]), color=color, linestyle=(0, (4, 2)), linewidth=0.6)
        draw_band(panel, strength, mean, line.get("probability" + STANDARD_ERROR), color)


def _legend(drawing: Figure, shown: xr.Dataset, n_images: int) -> None:
    """Name the classes, the dashed line and the band."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    names = shown["class_name"].values.tolist()
    entries: list[Artist] = [
        Line2D([], [], color=color, marker="o", label=name)
        for color, name in zip(colours(MOST_CLASSES), names, strict=False)
    ]
    entries.append(Line2D([], [], color="0.3", linestyle=(0, (4, 2)), linewidth=0.6, label="clean run"))
    if n_images > 1:
        entries.append(Patch(color="0.3", alpha=0.2, linewidth=0, label=f"± 1 s.e.,\nn = {n_images} images"))
    drawing.legend(handles=entries, loc="outside right upper", handlelength=2)


def _caption(steering: xr.Dataset) -> str:
    how = MODES.get(steering.attrs.get("mode", ""), "steered to")
    tokens, n_images = steering.attrs.get("tokens", "all"), steering.sizes["image"]
    band = " Bands: ± 1 standard error over images." if n_images > 1 else ""
    return (
        f"Probability of classes with the activation of one latent {how} the strength on {tokens} tokens; "
        f"mean over {n_images} images. Dashed: the clean run.{band}"
    )
