"""Values of tokens laid out as the patches of the image are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prisma_steps.figures.style import require

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from matplotlib.axes import Axes

#: Coordinates that say what a token is and where it lies in the image.
PLACES = ("token_kind", "patch_row", "patch_col")


def on_grid(values: xr.DataArray) -> np.ndarray:
    """Values of the patch tokens as [patch_row, patch_col].

    Args:
        values: along one dim, with the coordinates ``token_kind``, ``patch_row`` and ``patch_col``.
    """
    import numpy as np

    is_patch = values["token_kind"].values == "patch"
    rows, columns = (values[name].values[is_patch].astype(int) for name in ("patch_row", "patch_col"))
    grid = np.full((rows.max() + 1, columns.max() + 1), np.nan)
    grid[rows, columns] = values.values[is_patch]
    return grid


def others(values: xr.DataArray) -> xr.DataArray:
    """Values of the tokens that have no place in the image: CLS and registers."""
    return values[values["token_kind"].values != "patch"]


def frames_of(values: xr.DataArray | xr.Dataset) -> list[int]:
    """Numbers of the frames on the patch grid (tubelets); [0] where all patches are of a still image."""
    if "patch_frame" not in values.coords:
        return [0]
    return sorted({*values["patch_frame"].values.tolist()} - {-1})


def in_frame(values: xr.DataArray, number: int) -> xr.DataArray:
    """The patches of one frame; all tokens of a still image."""
    if "patch_frame" not in values.coords:
        return values
    return values[values["patch_frame"].values == number]


def token_axis(panel: Axes, tokens: xr.DataArray, line: str) -> None:
    """Name the tokens along x: those that are no patches, then the patches, of clips frame by frame.

    Args:
        panel: whose x axis counts places in the sequence.
        tokens: with the coordinates of tokens.
        line: colour of the lines before the patches of each frame.
    """
    kinds = tokens["token_kind"].values.tolist()
    frames = [0 if kind == "patch" else -1 for kind in kinds]
    if "patch_frame" in tokens.coords:
        frames = tokens["patch_frame"].values.tolist()
    names: dict[float, str] = {place: _token_name(kinds[place]) for place in _aside_places(kinds)}
    numbers = sorted({*frames} - {-1})
    for number in numbers:
        patches = [place for place, frame in enumerate(frames) if frame == number]
        names[(patches[0] + patches[-1]) / 2] = (
            f"frame {number}" if len(numbers) > 1 else f"{len(patches)} patches"
        )
        if patches[0]:
            panel.axvline(patches[0] - 0.5, color=line, linewidth=0.6)
    panel.set_xticks([*names], [*names.values()], fontsize=5)
    panel.tick_params(axis="x", length=0)


def _aside_places(kinds: list[str]) -> list[int]:
    """Places of tokens that are no patches; of registers the first alone, or their names would overlap."""
    return [place for place, kind in enumerate(kinds) if kind != "patch" and kinds.index(kind) == place]


def _token_name(kind: str) -> str:
    return {"cls": "CLS", "register": "reg.", "distillation": "dist."}.get(kind, kind)


def require_tokens(data: xr.Dataset, of: str) -> None:
    """Check that the tokens of ``data`` say what they are and where they lie."""
    require(data, *PLACES, of=of)
