"""Dictionaries with random weights, of every kind."""

from __future__ import annotations

from typing import Any

import torch
import xarray as xr

from prisma_steps.sae.architectures import architecture
from prisma_steps.sae.autoencoder import Autoencoder, Shape
from prisma_steps.sae.labelled import dictionary_dataset


def untrained(shape: Shape, name: str = "topk", **settings: Any) -> Autoencoder:
    """A frozen dictionary that starts from random directions, off the origin, with a factor that is not 1."""
    settings = settings or {"topk": {"k": 3}, "relu": {"l1_coefficient": 1.0}}[name]
    made = architecture(name)(shape, **settings)
    made.initialise(torch.full((shape.d_out,), 0.1), torch.Generator().manual_seed(2))
    made.normalisation.norm_factor.fill_(1.3)
    return made.requires_grad_(False)


def labelled(autoencoder: Autoencoder, **trained_on: Any) -> xr.Dataset:
    """A dictionary as an artifact holds it, without history; of resid_post and all tokens if not told."""
    return dictionary_dataset(autoencoder, {}, {"site": "resid_post", "tokens": "all", **trained_on})
