"""Mean and standard error over one dim, the only reduction that figures make, and the frame of the points."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prisma_steps.figures.style import STANDARD_ERROR

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


def average(data: xr.Dataset, dim: str) -> xr.Dataset:
    """Mean over ``dim`` of every variable that has it, and its standard error: std / √n, n − 1 in the std.

    Data without ``dim`` comes back as it is. A missing value makes its mean missing: it is not passed over.
    """
    if dim not in data.dims:
        return data
    n = data.sizes[dim]
    averaged = data.mean(dim, skipna=False, keep_attrs=True)
    if n > 1:
        varying = [name for name, variable in data.data_vars.items() if dim in variable.dims]
        errors = data[varying].std(dim, ddof=1, skipna=False) / n**0.5
        averaged = averaged.assign({f"{name}{STANDARD_ERROR}": error for name, error in errors.items()})
    return averaged


def largest_error(averaged: xr.Dataset) -> str:
    """The largest standard error of averaged data as captions name it; nothing where there is none."""
    errors = [averaged[name] for name in averaged if str(name).endswith(STANDARD_ERROR)]
    return f", standard error at most {max(float(error.max()) for error in errors):.2g}" if errors else ""


def frame(data: xr.Dataset) -> pd.DataFrame:
    """One row for every point of the grid: dims, then coordinates along them, then variables."""
    scalars = [name for name in data.coords if data[name].ndim == 0]
    if not data.dims:
        return data.drop_vars(scalars).expand_dims("point").to_dataframe().reset_index(drop=True)
    return data.drop_vars(scalars).to_dataframe(dim_order=list(data.dims)).reset_index()
