"""Values of tokens laid out as the patches of the image are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prisma_steps.figures.style import require

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

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


def require_tokens(data: xr.Dataset, of: str) -> None:
    """Check that the tokens of ``data`` say what they are and where they lie."""
    require(data, *PLACES, of=of)
