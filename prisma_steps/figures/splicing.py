"""A model before and after a dictionary is spliced in: activations, attention and classes of one image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from prisma_steps.figures.one_image import bare, image_id, in_colour, pixels_of
from prisma_steps.figures.patch_grid import on_grid, others, require_tokens
from prisma_steps.figures.style import FigureParams, Plot, figure, require
from prisma_steps.schema import Images, Splicing
from prisma_steps.step import Field, StepError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

#: Height by width of the figure.
SHAPE = 0.47

NORMS = {"value_norm": "‖x‖", "reconstruction_norm": "‖x̂‖", "error_norm": "‖x − x̂‖"}
RUNS = {"clean": "clean", "reconstruction": "reconstruction", "error_term": "with error term"}
COLOURS = {"clean": "#0173b2", "reconstruction": "#de8f05", "error_term": "0.65"}


class Params(FigureParams):
    """Settings of the comparison."""

    width: Literal["one_column", "two_columns"] = Field(
        "two_columns", description="width in print: one column is 3.5 inches, two are 7.2"
    )
    image: int | str = Field(0, description="the image, by its place among those compared or by its id")
    frame: int = Field(0, ge=0, description="of a clip, the frame on the patch grid")
    head: int | None = Field(None, ge=0, description="head whose attention is drawn; the mean when null")
    n_classes: int = Field(5, gt=0, description="classes at most, from the most probable in the clean run")


@figure(inputs={"splicing": Splicing, "images": Images})
def splicing(splicing: xr.Dataset, images: xr.Dataset, params: Params) -> Plot:
    """Draw norms of x, x̂ and x − x̂, CLS attention and class probabilities, before and after splicing.

    Norms have one colour scale, and attentions another. Values of tokens that are no patches are written
    below the maps.

    Raises:
        StepError: when the norms or the runs are missing, the tokens have no place in the image, or the
            image, frame or head is not there.
    """
    require(splicing, *NORMS, "probability", "run", "token", of="splicing")
    require_tokens(splicing, of="splicing")
    image = image_id(splicing, params.image, of="splicing")
    pixels, shown = pixels_of(images, image, of="splicing"), splicing.sel(image=image)
    if "patch_frame" in shown.coords:
        pixels, shown = _frame(pixels, shown, params.frame)
    if bool(shown["value_norm"].where(shown["token_kind"] == "patch", drop=True).isnull().all()):
        raise StepError("splicing: the dictionary is of no patch tokens, which a map could show")
    norms = {name: shown[name].dropna("token") for name in NORMS}
    attention = _attention(shown, params.head)
    top = _top_classes(shown, params.n_classes)
    drawing, (above, below) = _page(params.inches)
    panels = above.subplots(1, 4)
    _show_image(panels[0], pixels)
    _maps(above, panels[1:], norms, NORMS, "Norm of the activation")
    if attention:
        titles = {run: f"CLS attention,\n{RUNS[run]}" for run in attention}
        of_heads = "mean of heads" if params.head is None else f"head {params.head}"
        *panels, last = below.subplots(1, 3, width_ratios=[1, 1, 2])
        _maps(below, panels, attention, titles, f"Attention, {of_heads}")
    else:
        last = below.subplots()
    _bars(last, top)
    return Plot(drawing, _numbers(norms, attention, top), _caption(splicing, image, params))


def _frame(pixels: xr.DataArray, shown: xr.Dataset, frame: int) -> tuple[xr.DataArray, xr.Dataset]:
    """The first frame of a tubelet, and its patches, with what is no patch; other patches are left out."""
    tubelets = int(shown["patch_frame"].max()) + 1
    if frame >= tubelets:
        raise StepError(f"splicing: frame is {frame}, and the clip has {tubelets} on the patch grid")
    of_frame = (shown["patch_frame"] == frame) | (shown["token_kind"] != "patch")
    dims = [dim for dim in ("token", "key_token") if dim in shown.dims]
    still = pixels.isel(frame=frame * pixels.sizes["frame"] // tubelets)
    return still, shown.isel(dict.fromkeys(dims, of_frame.values))


def _attention(shown: xr.Dataset, head: int | None) -> dict[str, xr.DataArray]:
    """Attention of the CLS token before and after, along token; nothing where none was compared."""
    if "cls_attention" not in shown:
        return {}
    n_heads = shown.sizes["head"]
    if head is not None and head >= n_heads:
        raise StepError(f"splicing: head is {head}, and the block has heads 0 to {n_heads - 1}")
    attention = (
        shown["cls_attention"].mean("head") if head is None else shown["cls_attention"].isel(head=head)
    )
    along_token = attention.drop_vars("key_token", errors="ignore").rename(key_token="token")
    placed = along_token.assign_coords(shown["value_norm"].coords)
    return {run: placed.sel(run=run) for run in ("clean", "reconstruction")}


def _top_classes(shown: xr.Dataset, n_classes: int) -> xr.DataArray:
    clean = shown["probability"].sel(run="clean").values
    return shown["probability"].isel({"class": (-clean).argsort(kind="stable")[:n_classes]})


def _page(width: float) -> tuple[Figure, Sequence[SubFigure]]:
    """A figure, and its upper and its lower half, which lay out their panels each by itself."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, SHAPE * width), layout="constrained")
    halves: Any = drawing.subfigures(2, 1)
    return drawing, halves


def _show_image(panel: Axes, pixels: xr.DataArray) -> None:
    panel.imshow(in_colour(pixels))
    panel.set_title("Image", pad=3)
    bare(panel)


def _maps(
    part: SubFigure,
    panels: Sequence[Axes],
    values: dict[str, xr.DataArray],
    titles: dict[str, str],
    label: str,
) -> None:
    """Maps on one colour scale, and its bar."""
    highest = max(float(of_map.where(of_map["token_kind"] == "patch").max()) for of_map in values.values())
    shown: Any = None
    for panel, (name, of_map) in zip(panels, values.items(), strict=True):
        shown = panel.imshow(on_grid(of_map), "viridis", vmin=0, vmax=highest)
        panel.set_title(titles[name], pad=3)
        panel.set_xlabel(_aside(others(of_map)), fontsize=6, labelpad=2)
        bare(panel)
    part.colorbar(shown, ax=list(panels), label=label, fraction=0.03, pad=0.02)


def _aside(values: xr.DataArray) -> str:
    """Values of the tokens that are no patches: their own where there are few, else the first."""
    kinds = values["token_kind"].values.tolist()
    names = ["CLS" if kind == "cls" else kind for kind in kinds[:2]]
    return ", ".join(f"{name} {value:.3g}" for name, value in zip(names, values.values, strict=False))


def _bars(panel: Axes, top: xr.DataArray) -> None:
    """Probabilities of classes in every run, side by side."""
    import numpy as np

    places, width = np.arange(top.sizes["class"]), 0.8 / len(RUNS)
    for number, (run, name) in enumerate(RUNS.items()):
        offset = (number - (len(RUNS) - 1) / 2) * width
        panel.bar(places + offset, top.sel(run=run).values, width, color=COLOURS[run], label=name)
    names: Sequence[str] = [str(name) for name in top["class_name"].values]
    panel.set_xticks(places, [name if len(name) < 12 else f"{name[:11]}…" for name in names])
    panel.set(ylabel="Probability", ylim=(0, 1))
    panel.grid(axis="x", visible=False)
    panel.legend(loc="upper right", handlelength=1)


def _numbers(
    norms: dict[str, xr.DataArray], attention: dict[str, xr.DataArray], top: xr.DataArray
) -> pd.DataFrame:
    """Rows of each panel: tokens of the maps, classes of the bars."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    maps = {**norms, **{f"cls_attention, {run}": values for run, values in attention.items()}}
    for name, of_map in maps.items():
        for token, place in enumerate(of_map["token_kind"].values):
            where = {key: int(of_map[key].values[token]) for key in ("patch_row", "patch_col")}
            rows.append({"panel": name, "token_kind": place, **where, "value": float(of_map.values[token])})
    for run in RUNS:
        for name, value in zip(top["class_name"].values, top.sel(run=run).values, strict=True):
            rows.append({"panel": f"probability, {run}", "class_name": str(name), "value": float(value)})
    table = pd.DataFrame(rows)
    return table.fillna({"token_kind": "", "class_name": ""})


def _caption(splicing: xr.Dataset, image: str, params: Params) -> str:
    site = splicing.coords.get("site")
    layer = splicing.coords.get("layer")
    where = (
        "" if site is None else f" at {site.item()}" + ("" if layer is None else f" of layer {layer.item()}")
    )
    attention = ""
    if "cls_attention" in splicing:
        of_heads = "mean of heads" if params.head is None else f"head {params.head}"
        attention = (
            f" CLS attention in layer {splicing.attrs['attention_layer']} ({of_heads}), before and after."
        )
    return (
        f"A dictionary spliced in{where}, on image {image}: norms of the activation x, of its reconstruction "
        f"x̂ and of the error.{attention} Probabilities of classes in the clean run, with x̂ in the place of "
        "x, and with the error term added back. Below maps: tokens that are no patches."
    )
