"""Small dictionaries of every architecture and kind, in general position."""

from __future__ import annotations

from typing import Any

import torch
import xarray as xr

from prisma_steps.sae.architectures import architecture
from prisma_steps.sae.autoencoder import Autoencoder, Shape
from prisma_steps.sae.labelled import dictionary_dataset

D_MODEL, N_LATENTS, K = 6, 10, 3
NO_DEAD = torch.zeros(N_LATENTS, dtype=torch.bool)

SETTINGS = {
    "relu": {"l1_coefficient": 0.7},
    "gated": {"l1_coefficient": 0.7},
    "topk": {"k": K, "aux_k_coefficient": 0.25},
    "batch_topk": {"k": K, "aux_k_coefficient": 0.25},
    "jumprelu": {"l0_coefficient": 0.7, "bandwidth": 0.5},
    "matryoshka": {"k": K, "aux_k_coefficient": 0.25, "prefixes": [0.3, 0.6, 1.0]},
}
KINDS = {
    "autoencoder": {},
    "transcoder": {"d_target": 4, "skip": True},
    "crosscoder": {"n_layers": 2, "unit_norm": False},
}


def make(name: str, kind: str = "autoencoder", normalise: str = "expected_norm") -> Autoencoder:
    """In float64: no two weights tied, no bias zero; a factor of 2.5 (2 for the second layer, 3 for y)."""
    shape = Shape(D_MODEL, N_LATENTS, normalise=normalise, **KINDS[kind])
    sae = architecture(name)(shape, **SETTINGS[name])
    generator = torch.Generator().manual_seed(3)
    sae.initialise(torch.randn(shape.d_out, generator=generator), generator)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        if normalise != "layer_norm":
            sae.normalisation.norm_factor.copy_(torch.tensor([2.5, 2.0])[: shape.n_layers])
        if kind == "transcoder":
            sae.normalisation.target_norm_factor.fill_(3.0)
        if "threshold" in dict(sae.named_buffers()):
            sae.threshold.fill_(0.4)
    sae.double().constrain_weights()
    return sae


def batch(sae: Autoencoder, n_tokens: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets in float64."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(n_tokens, sae.shape.d_in, generator=generator, dtype=torch.float64)
    if sae.shape.kind != "transcoder":
        return x, x
    return x, torch.randn(n_tokens, sae.shape.d_out, generator=generator, dtype=torch.float64)


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
