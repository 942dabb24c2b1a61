"""Dictionaries of the store with the place in a model that they belong to."""

from __future__ import annotations

from typing import Any

import xarray as xr

from prisma_steps.models.sites import SiteKey
from prisma_steps.models.splicing import Splice
from prisma_steps.sae.labelled import load_dictionary


def as_splice(data: xr.Dataset, device: str = "cpu") -> Splice:
    """A dictionary as a step left it, to be spliced into its model; ``dictionary`` is the ``Autoencoder``.

    Of a crosscoder the place is that of its first layer.
    """
    attrs: dict[str, Any] = data.attrs
    layer = int(data["layer"][0]) if "layer" in data.coords else attrs.get("layer")
    reads: SiteKey = (attrs["site"], layer)
    writes = (attrs["target_site"], attrs.get("target_layer", layer)) if "target_site" in attrs else reads
    return Splice(load_dictionary(data, device), reads, writes, attrs.get("tokens", "all"))
