"""Panels of effects of patching: maps of the patches of a layer, and tables of layers × something."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from prisma_steps.figures.patch_grid import frames_of, on_grid, others, token_axis
from prisma_steps.figures.style import as_table, cell_ticks

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

#: Left edge of the column of tokens that have no place in the image, in patches from the first patch.
ASIDE = -1.6

#: Colours from below the value of a cell without effect to above it.
COLOURS = "RdBu_r"


class Panel(NamedTuple):
    """What one panel shows.

    Attributes:
        title: what stands above it.
        cells: along token for a map of patches, along layer and one more dim for a table.
    """

    title: str
    cells: xr.DataArray

    @property
    def is_map(self) -> bool:
        """Whether it is a map of patches."""
        return self.cells.ndim == 1

    @property
    def aspect(self) -> float:
        """Height over width, cells being squares."""
        if not self.is_map:
            return self.cells.shape[0] / self.cells.shape[1]
        rows, columns = on_grid(self.cells).shape
        return rows / (columns - ASIDE)


def panels_of(effect: xr.DataArray, view: Literal["patch_grid", "tokens"]) -> Iterator[Panel]:
    """The panels, row by row: of several sites each apart."""
    if "site" in effect.dims:
        for site in effect["site"].values:
            for title, cells in panels_of(effect.sel(site=site, drop=True), view):
                yield Panel(f"{site}, {title[:1].lower()}{title[1:]}" if title else str(site), cells)
    elif "token" not in effect.dims:
        yield Panel("", effect.transpose("layer", ...))
    elif view == "patch_grid":
        for layer in effect["layer"].values:
            yield from _maps(effect.sel(layer=layer), f"Layer {layer}")
    elif "head" in effect.dims:
        for head in effect["head"].values:
            yield Panel(f"Head {head}", effect.sel(head=head, drop=True).transpose("layer", "token"))
    else:
        yield Panel("", effect.transpose("layer", "token"))


def _maps(effect: xr.DataArray, title: str) -> Iterator[Panel]:
    """Maps of the patches of a layer, of every head and frame."""
    if "head" in effect.dims:
        for head in effect["head"].values:
            yield from _maps(effect.sel(head=head), f"{title}, head {head}")
        return
    frames = frames_of(effect)
    if len(frames) == 1:
        yield Panel(title, effect)
        return
    places = effect["patch_frame"].values
    for number in frames:
        # What has no place in the clip stands beside its first frame.
        here = (places == number) | ((places == -1) & (number == frames[0]))
        yield Panel(f"{title}, frame {number}", effect.isel(token=here))


def draw_panel(axes: Axes, panel: Panel, norm: Normalize) -> None:
    """Draw a map or a table."""
    axes.set_title(panel.title)
    (_draw_map if panel.is_map else _draw_table)(axes, panel.cells, norm)


def _draw_map(axes: Axes, cells: xr.DataArray, norm: Normalize) -> None:
    patches, aside = on_grid(cells), others(cells)
    rows, columns = patches.shape
    axes.imshow(patches, extent=(0, columns, rows, 0), norm=norm, cmap=COLOURS, origin="upper")
    _outline(axes, 0, 0, columns, rows)
    if aside.size:
        _draw_aside(axes, aside, (rows - aside.size) / 2, norm)
    axes.set(xlim=(ASIDE - 0.1, columns + 0.1), ylim=(rows + 0.1, -0.1))
    axes.set_axis_off()
    axes.title.set_x((columns / 2 - ASIDE + 0.1) / (columns - ASIDE + 0.2))  # above the patches


def _draw_aside(axes: Axes, aside: xr.DataArray, top: float, norm: Normalize) -> None:
    """The tokens that have no place in the image, one below the other, left of the patches."""
    extent = (ASIDE, ASIDE + 1, top + aside.size, top)
    axes.imshow(aside.values[:, None], extent=extent, norm=norm, cmap=COLOURS, origin="upper")
    for place in range(aside.size):
        _outline(axes, ASIDE, top + place, 1, 1)
    name = "CLS" if aside.size == 1 else "CLS,\nreg."
    axes.text(ASIDE + 0.5, top - 0.2, name, ha="center", va="bottom", fontsize=5)


def _outline(axes: Axes, left: float, top: float, width: float, height: float) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor="0.4", linewidth=0.4))


def _draw_table(axes: Axes, cells: xr.DataArray, norm: Normalize) -> None:
    """Layers downwards, tokens, heads or frames across."""
    across = str(cells.dims[1])
    by_token = across == "token"
    axes.imshow(cells.values, norm=norm, cmap=COLOURS, aspect="auto" if by_token else "equal")
    as_table(axes)
    axes.set_ylabel("Layer")
    cell_ticks(axes.yaxis, cells["layer"].values)
    axes.set_xlabel({"patch_frame": "Frame"}.get(across, across.capitalize()))
    if by_token:
        token_axis(axes, cells, line="0.2")
    else:
        cell_ticks(axes.xaxis, cells[across].values, {-1: "CLS"} if across == "patch_frame" else {})
