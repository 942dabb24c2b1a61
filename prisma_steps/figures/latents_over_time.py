"""How latents fire in the course of clips of each kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from prisma_steps.figures.average import average, frame
from prisma_steps.figures.curves import draw_band
from prisma_steps.figures.latent_panels import colours, latent_panels
from prisma_steps.figures.style import STANDARD_ERROR, FigureParams, Plot, axis_label, figure, require
from prisma_steps.schema import TimeCourses
from prisma_steps.step import Field, StepError

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Lines that can be told apart.
MOST_GROUPS = 8


class Params(FigureParams):
    """Settings of the time courses."""

    over_patches: Literal["highest", "mean"] = Field(
        "highest", description="of a frame, the highest activation of its patches, or their mean"
    )
    by: str | None = Field(
        "label",
        description="what is known of each clip, and shown by colour: label, velocity_x, …; null draws the "
        "mean of all clips",
    )
    latents: list[int] | None = Field(
        None, min_length=1, description="latents, one panel each; all that were followed when null"
    )


@figure(inputs={"courses": TimeCourses})
def latents_over_time(courses: xr.Dataset, params: Params) -> Plot:
    """Plot the activation of latents from frame to frame, a panel a latent and a line for each kind of clip.

    Clips are averaged; bands are ± one standard error over clips.

    Raises:
        StepError: when a latent or what is known of the clips is missing, or tells too many kinds apart.
    """
    name = f"{params.over_patches}_in_frame"
    require(courses, name, "latent", "image", "patch_frame", of="latents_over_time")
    chosen = _of_latents(courses, params)[[name]]
    shown, groups = _averaged(chosen, courses, params.by)
    latents = shown["latent"].values
    drawing, axes = latent_panels(latents, params)
    for panel, latent in zip(axes.flat, latents, strict=False):
        _draw(panel, shown.sel(latent=latent), name)
    of_patches = {"highest": "Highest", "mean": "Mean"}[params.over_patches]
    drawing.supylabel(f"{of_patches} activation of the frame", fontsize=7)
    drawing.supxlabel(axis_label(courses, "patch_frame"), fontsize=7)
    _legend(drawing, groups, axis_label(courses, params.by) if params.by else "")
    return Plot(drawing, frame(shown.reset_coords(drop=True)), _caption(courses, params))


def _of_latents(courses: xr.Dataset, params: Params) -> xr.Dataset:
    there = courses["latent"].values.tolist()
    strange = [latent for latent in params.latents or [] if latent not in there]
    if strange:
        raise StepError(
            f"latents_over_time: latent {strange[0]} was not followed; there are {', '.join(map(str, there))}"
        )
    return courses if params.latents is None else courses.sel(latent=params.latents)


def _averaged(
    chosen: xr.Dataset, courses: xr.Dataset, by: str | None
) -> tuple[xr.Dataset, list[tuple[str, int]]]:
    """Mean and standard error over the clips of each kind, along ``group``; names of the kinds and n."""
    import xarray as xr

    kinds = [None] if by is None else _kinds(courses, by)
    parts: list[xr.Dataset] = []
    groups = []
    for kind in kinds:
        of_kind = chosen if by is None else chosen.isel(image=courses[by].values == kind)
        parts.append(average(of_kind.reset_coords(drop=True), "image"))
        groups.append((_kind_name(courses, by, kind), of_kind.sizes["image"]))
    names = [name for name, _ in groups]
    # One clip of a kind has no standard error: its band is missing where the others have theirs.
    joined: xr.Dataset = xr.concat(parts, xr.IndexVariable("group", names), join="exact", data_vars="all")
    return joined, groups


def _kinds(courses: xr.Dataset, by: str) -> list[Any]:
    import numpy as np

    if by not in courses.coords or courses[by].dims != ("image",):
        known = ", ".join(
            sorted(str(name) for name, coord in courses.coords.items() if coord.dims == ("image",))
        )
        raise StepError(f"latents_over_time: nothing is known of clips by the name {by!r}; there is {known}")
    kinds = np.unique(courses[by].values).tolist()
    if len(kinds) > MOST_GROUPS:
        raise StepError(
            f"latents_over_time: by is {by!r}, of which the clips have {len(kinds)} values, and colours tell "
            f"up to {MOST_GROUPS} apart: name another"
        )
    return kinds


def _kind_name(courses: xr.Dataset, by: str | None, kind: Any) -> str:
    if by is None:
        return "all clips"
    if by == "label" and "class_name" in courses.coords:
        return str(courses["class_name"].values[int(kind)])
    return f"{kind:g}" if isinstance(kind, float) else str(kind)


def _draw(panel: Axes, of_latent: xr.Dataset, name: str) -> None:
    from matplotlib.ticker import MaxNLocator

    time = of_latent["patch_frame"].values
    for color, number in zip(colours(MOST_GROUPS), range(of_latent.sizes["group"]), strict=False):
        line = of_latent.isel(group=number)
        mean = line[name].values
        panel.plot(time, mean, color=color, marker="o", markersize=2.5)
        draw_band(panel, time, mean, line.get(name + STANDARD_ERROR), color)
    panel.set_ylim(bottom=0)
    panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def _legend(drawing: Figure, groups: list[tuple[str, int]], title: str) -> None:
    from matplotlib.lines import Line2D

    entries = [
        Line2D([], [], color=color, marker="o", label=f"{name} (n = {n:,})")
        for color, (name, n) in zip(colours(MOST_GROUPS), groups, strict=False)
    ]
    drawing.legend(handles=entries, title=title, loc="outside right upper", handlelength=1.5)


def _caption(courses: xr.Dataset, params: Params) -> str:
    of_patches = {"highest": "highest", "mean": "mean"}[params.over_patches]
    by = "" if params.by is None else f" by {axis_label(courses, params.by).lower()}"
    return (
        f"Activation of latents in the course of clips{by}: the {of_patches} over the patches of a frame, "
        f"mean over clips (n = {courses.sizes['image']:,} in all). Bands: ± 1 standard error over clips."
    )
