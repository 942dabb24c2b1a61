"""Dictionaries of several sites or settings, gathered along the axes of a grid."""

from __future__ import annotations

import itertools

import xarray as xr

from prisma_steps.step import StepError


def one_by_one(gathered: xr.Dataset) -> list[xr.Dataset]:
    """The dictionaries of a gathered grid, each as its step left it.

    What the grid varies is an attribute of each again: its layer, its site, its settings.

    Raises:
        StepError: when they are crosscoders.
    """
    if gathered.attrs.get("kind") == "crosscoder":
        raise StepError("these dictionaries are crosscoders, which are of several layers at once")
    axes = [dim for dim in gathered["W_enc"].dims if dim not in ("d_model", "latent")]
    points = itertools.product(*(range(gathered.sizes[axis]) for axis in axes))
    return [_one(gathered.isel(dict(zip(axes, point, strict=True)))) for point in points]


def _one(data: xr.Dataset) -> xr.Dataset:
    varied = {str(name): coord.item() for name, coord in data.coords.items() if coord.ndim == 0}
    return data.drop_vars(varied).assign_attrs({**varied, **data.attrs})
