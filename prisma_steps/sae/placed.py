"""Dictionaries of the store with the place in a model that they belong to."""

from __future__ import annotations

import xarray as xr

from prisma_steps.models.splicing import Splice
from prisma_steps.sae.labelled import load_dictionary
from prisma_steps.sae.place import place_of
from prisma_steps.schema import SITES_WITHOUT_LAYER


def as_splice(data: xr.Dataset, device: str = "cpu") -> Splice:
    """A dictionary as a step left it, to be spliced into its model; ``dictionary`` is the ``Autoencoder``.

    Of a crosscoder the place is that of its first layer.
    """
    place = place_of(data, dict.fromkeys(SITES_WITHOUT_LAYER, False))
    return Splice(load_dictionary(data, device), place.reads[0], place.writes[0], place.tokens)
