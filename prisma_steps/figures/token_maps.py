"""Numbers of tokens as maps over the images that the tokens are of: what figures of attention share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from prisma_steps.figures.one_image import bare, stills_of
from prisma_steps.figures.patch_grid import PLACES, frames_of, in_frame, on_grid, others
from prisma_steps.step import StepError

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

#: Heights of a map's title, of the text below it and of the colour bar with its label, the space between
#: maps, and the width of the names of rows, in inches.
TITLE, TEXT, BAR, GAP, NAMES = 0.16, 0.11, 0.5, 0.06, 0.5

#: Sides of a map at least and at most, and height of a page, in inches.
SMALLEST, LARGEST, PAGE = 0.3, 1.6, 9.4

#: How much darker a black pixel makes a map than a white one.
SHADE = 0.2

#: Grey, from 0 to 1, below which a pixel is dark.
DARK = 0.1

#: Colour of the outline of the query.
MARK = "#de8f05"

#: The token that attends: cls, or row and column of a patch, after its frame in clips.
Query = Literal["cls"] | list[int]


@dataclass(frozen=True)
class Sheet:
    """A page of equal panels in rows and columns; all lengths are in inches, places from the upper left.

    Attributes:
        drawing: the page.
        left: where the first column begins.
        width: of a panel.
        height: of a panel.
        text: space below a panel.
    """

    drawing: Figure
    left: float
    width: float
    height: float
    text: float

    def panel(self, row: float, column: int) -> Axes:
        """New axes; a row between two whole numbers lies between their rows."""
        top = TITLE + row * (TITLE + self.height + self.text)
        return self._axes(self.left + column * (self.width + GAP), top, self.width, self.height)

    def colour_bar(self, colours: ScalarMappable, label: str) -> None:
        """The colour scale, at the foot of the page."""
        across, down = self.drawing.get_size_inches()
        bar = self._axes(across * 0.25, down - BAR + 0.05, across * 0.5, 0.07)
        self.drawing.colorbar(colours, cax=bar, orientation="horizontal", label=label)

    def _axes(self, left: float, top: float, width: float, height: float) -> Axes:
        across, down = self.drawing.get_size_inches()
        return self.drawing.add_axes(
            (left / across, 1 - (top + height) / down, width / across, height / down)
        )


def sheet(across: float, rows: int, columns: int, aspect: float, clips: bool, of: str) -> Sheet:
    """A page ``across`` wide whose panels are as large as width and height of a page allow.

    Args:
        across: width of the page.
        rows: rows of panels.
        columns: columns of panels.
        aspect: height of a panel over its width.
        clips: whether words about maps stand left of them, and not below.
        of: name of the figure.

    Raises:
        StepError: when panels would be too small to be read.
    """
    from matplotlib.figure import Figure

    names, text = (NAMES, 0) if clips else (0, TEXT)
    by_height = ((PAGE - BAR) / rows - TITLE - text) / aspect
    width = min((across - names - GAP) / columns - GAP, by_height, LARGEST)
    if width < SMALLEST:
        raise StepError(
            f"{of}: {rows} rows of {columns} maps do not fit on a page. Choose some: layers, heads, image"
        )
    height = width * aspect
    used = names + columns * (width + GAP) + GAP
    page = Figure(figsize=(across, rows * (TITLE + height + text) + BAR))
    return Sheet(page, (across - used) / 2 + names + GAP, width, height, text)


@dataclass(frozen=True)
class Look:
    """What all maps of a figure have in common.

    Attributes:
        title: what a map is called.
        label: what the colours mean.
        query: the token whose place is outlined.
    """

    title: Callable[[xr.DataArray], str]
    label: str
    query: Query


def draw_maps(
    maps: xr.DataArray, images: Mapping[str, xr.DataArray], look: Look, inches: float, of: str
) -> Figure:
    """Maps of several images on one colour scale, each beside its image.

    Of still images the second and the third dim of ``maps`` are rows and columns. Of clips every map is a
    row, a column is a frame, and the frames of the clip stand above.

    Args:
        maps: along image, two more dims, and token.
        images: pixels of every image.
        look: how they are drawn.
        inches: width of the page.
        of: name of the figure.

    Raises:
        StepError: when there are more maps than fit on a page.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    frames = frames_of(maps)
    clips, (n_images, down, across) = len(frames) > 1, maps.shape[:3]
    stills = [stills_of(images[name], len(frames)) for name in maps["image"].values.tolist()]
    height, width, _ = stills[0][0].shape
    rows, columns = (1 + down * across, len(frames)) if clips else (down, across + 1)
    page = sheet(inches, n_images * rows, columns, height / width, clips, of)
    colours = ScalarMappable(Normalize(0, float(maps.where(maps["token_kind"] == "patch").max())), "Blues")
    for place, (of_image, shown) in enumerate(zip(maps, stills, strict=True)):
        (_draw_clip if clips else _draw_still)(page, place * rows, of_image, shown, look, colours)
    page.colour_bar(colours, look.label)
    return page.drawing


def _draw_still(
    page: Sheet,
    first: int,
    maps: xr.DataArray,
    stills: Sequence[np.ndarray],
    look: Look,
    colours: ScalarMappable,
) -> None:
    """The image at the left, its maps right of it."""
    down, across, _ = maps.shape
    shape = on_grid(maps[0, 0]).shape
    panel = page.panel(first + (down - 1) / 2, 0)
    _show_image(panel, stills[0], "Image")
    _outline(panel, stills[0], shape, look.query)
    for row in range(down):
        for column in range(across):
            cells, panel = maps[row, column], page.panel(first + row, column + 1)
            _show_map(panel, stills[0], on_grid(cells), colours)
            _outline(panel, stills[0], shape, look.query)
            panel.set_title(look.title(cells), pad=2)
            if others(cells).size:
                panel.set_xlabel(_aside(cells), fontsize=5, labelpad=1)


def _draw_clip(
    page: Sheet,
    first: int,
    maps: xr.DataArray,
    stills: Sequence[np.ndarray],
    look: Look,
    colours: ScalarMappable,
) -> None:
    """The frames of the clip in a row, and below them a row of frames for every map."""
    all_cells = [maps[row, column] for row in range(maps.shape[0]) for column in range(maps.shape[1])]
    for column, number in enumerate(frames_of(maps)):
        marked = look.query if look.query == "cls" or look.query[0] == number else "cls"
        panel = page.panel(first, column)
        _show_image(panel, stills[column], f"Frame {number}")
        _outline(panel, stills[column], on_grid(in_frame(maps[0, 0], number)).shape, marked)
        for row, cells in enumerate(all_cells, first + 1):
            patches, panel = on_grid(in_frame(cells, number)), page.panel(row, column)
            _show_map(panel, stills[column], patches, colours)
            _outline(panel, stills[column], patches.shape, marked)
            if column == 0:
                name = "\n".join([look.title(cells), *([_aside(cells)] if others(cells).size else [])])
                panel.set_ylabel(name, rotation=0, ha="right", va="center")


def _show_image(panel: Axes, still: np.ndarray, title: str) -> None:
    panel.imshow(still)
    panel.set_title(title, pad=2)
    bare(panel)


def _show_map(panel: Axes, still: np.ndarray, patches: np.ndarray, colours: ScalarMappable) -> None:
    panel.imshow(shaded(colours.to_rgba(patches)[..., :3], still))
    bare(panel)


def shaded(patches: np.ndarray, still: np.ndarray) -> np.ndarray:
    """Colours of patches [patch_row, patch_col, 3] over an image [row, column, 3], which shades them.

    Where most of the image is dark (sprites, digits) the negative shades them: the colours of the background
    are then those of the scale.
    """
    import numpy as np

    grey = still.mean(-1, keepdims=True) / 255
    if (grey < DARK).mean() > 0.5:
        grey = 1 - grey
    row, column = (
        np.arange(size) * count // size for size, count in zip(grey.shape, patches.shape[:2], strict=False)
    )
    return patches[row[:, None], column] * (1 - SHADE + SHADE * grey)


def _outline(panel: Axes, still: np.ndarray, grid: tuple[int, ...], query: Query) -> None:
    """Mark the patch that attends; CLS has no place in the image."""
    from matplotlib.patches import Rectangle

    if query == "cls":
        return
    height, width = still.shape[0] / grid[0], still.shape[1] / grid[1]
    corner = (query[-1] * width - 0.5, query[-2] * height - 0.5)
    panel.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=MARK, linewidth=1))


def _aside(cells: xr.DataArray) -> str:
    """What goes to tokens that have no place in the image."""
    aside = others(cells)
    return f"{'CLS' if aside.size == 1 else 'CLS, reg.'} {float(aside.sum()):.2f}"


def of_query(values: xr.DataArray, tokens: xr.Dataset, query: Query, of: str) -> xr.DataArray:
    """The row of one query token, along ``token``: the tokens that it attends to.

    Args:
        values: along query_token and key_token.
        tokens: kind and place of every token, along ``token``.
        query: the token that attends.
        of: name of the figure.

    Raises:
        StepError: when there is no such token.
    """
    row = values.isel(query_token=_place(tokens, query, of))
    row = row.drop_vars(["query_token", "key_token"], errors="ignore")
    return row.rename(key_token="token").assign_coords(tokens)


def _place(tokens: xr.Dataset, query: Query, of: str) -> int:
    """The place of the query in the sequence."""
    names = [name for name in ("patch_frame", *PLACES[1:]) if name in tokens]
    if query == "cls":
        found = tokens["token_kind"] == "cls"
    else:
        found = tokens["token_kind"] == "patch"
        for name, asked in zip(names, query, strict=False):
            found = found & (tokens[name] == asked) & (len(query) == len(names))
    if not found.any():
        kinds = ", ".join(sorted(set(tokens["token_kind"].values.tolist())))
        last = [int(tokens[name].max()) for name in names]
        raise StepError(
            f"{of}: no token is the query {query!r}; the tokens are of the kinds {kinds}, patches go from "
            f"{[0] * len(last)} to {last} ({', '.join(name.removeprefix('patch_') for name in names)})"
        )
    return int(found.values.argmax())


def query_name(query: Query) -> str:
    """The query as captions name it."""
    if query == "cls":
        return "the CLS token"
    frame = f"frame {query[0]}, " if len(query) == 3 else ""
    return f"the patch at {frame}row {query[-2]}, column {query[-1]}"


def tokens_of(data: xr.Dataset, otherwise: str, of: str) -> xr.Dataset:
    """Kind and place of every token that can be attended to, along ``token``.

    Raises:
        StepError: when the data does not have them; ``otherwise`` says what to do then.
    """
    if not set(PLACES) <= set(data.variables):
        raise StepError(f"{of}: the data does not say where tokens lie: no {', '.join(PLACES)}. {otherwise}")
    tokens = data[[*PLACES, *(["patch_frame"] if "patch_frame" in data.variables else [])]].reset_coords()
    (dim,) = tokens["token_kind"].dims
    if tokens.sizes[dim] != data.sizes["key_token"]:
        raise StepError(
            f"{of}: the data places {tokens.sizes[dim]} tokens in the image, but the pattern has "
            f"{data.sizes['key_token']}. {otherwise}"
        )
    return tokens.drop_vars([dim], errors="ignore").rename({dim: "token"}).load()
