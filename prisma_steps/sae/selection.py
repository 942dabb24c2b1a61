"""What of stored activations a dictionary is made of and for."""

from __future__ import annotations

from typing import Literal

import xarray as xr

from prisma_steps.sae.place import layers_of
from prisma_steps.schema import SITE_DIMS
from prisma_steps.step import StepError


def stored_site(activations: xr.Dataset, site: str | None, parameter: str) -> str:
    """``site``, or the only one that is stored.

    Raises:
        StepError: listing what is stored, when it is not there, not told, or has not one vector a token.
    """
    stored = [str(name) for name in activations.data_vars if name in SITE_DIMS]
    if site is None and len(stored) == 1:
        site = stored[0]
    if site not in stored:
        problem = "several sites are stored" if site is None else f"site {site!r} is not stored"
        raise StepError(f"{problem}: set {parameter} to one of {', '.join(stored)}")
    if SITE_DIMS[site][:2] != ("image", "token") or len(SITE_DIMS[site]) != 3:
        raise StepError(f"site {site!r} has dims {SITE_DIMS[site]}: a dictionary needs one vector a token")
    return site


def stored_layers(values: xr.DataArray, layer: int | Literal["last"] | list[int]) -> xr.DataArray:
    """One layer of a site's activations, or several along ``layer``; "last" is the last one stored.

    Raises:
        StepError: listing what is stored.
    """
    if "layer" not in values.dims:
        if layer != "last":
            raise StepError(f"{values.name!r} exists once, not once a layer: leave layer out")
        return values
    stored = values["layer"].values.tolist()
    if layer == "last":
        return values.sel(layer=stored[-1])
    asked = layer if isinstance(layer, list) else [layer]
    lacking = [number for number in asked if number not in stored]
    if lacking or not asked or len(set(asked)) < len(asked):
        problem = f"layer {lacking[0]} of {values.name!r} is not stored" if lacking else f"layer is {asked}"
        raise StepError(f"{problem}: set layer to one or several of {stored}, each once, or 'last'")
    if isinstance(layer, list) and len(layer) == 1:
        raise StepError(f"a crosscoder needs several layers: set layer to {layer[0]} for an autoencoder")
    return values.sel(layer=layer)


def input_of(activations: xr.Dataset, sae: xr.Dataset) -> xr.DataArray:
    """The activations that a dictionary reads, of all tokens; of a crosscoder along its layers.

    Raises:
        StepError: when they are not stored, or are not as wide as the dictionary.
    """
    site, layers = sae.attrs["site"], layers_of(sae)
    if site not in activations:
        stored = ", ".join(str(name) for name in activations.data_vars)
        raise StepError(f"the dictionary reads {site!r}; these are activations of {stored}")
    values = activations[site]
    if layers != [None]:
        there = values["layer"].values.tolist() if "layer" in values.coords else []
        there = there if isinstance(there, list) else [there]
        lacking = [layer for layer in layers if layer not in there]
        if lacking:
            raise StepError(f"the dictionary reads layer {lacking[0]} of {site!r}; stored are {there}")
        if "layer" in values.dims:
            values = values.sel(layer=layers if sae.attrs["kind"] == "crosscoder" else layers[0])
    width = values.sizes[str(values.dims[-1])]
    if width != sae.sizes["d_model"]:
        raise StepError(
            f"{site!r} is {width} wide, the dictionary reads {sae.sizes['d_model']} coordinates: give "
            "activations of the model that it was trained on"
        )
    return values
