"""Dictionaries and activations in float32, as files and models have them."""

from __future__ import annotations

import torch

from prisma_steps.sae.architectures import architecture
from prisma_steps.sae.autoencoder import Autoencoder, Shape
from tests.sae.dictionaries import SETTINGS

D_IN, N_LATENTS = 8, 24


def dictionary(
    name: str, shape: Shape | None = None, norm_factor: float = 1.0, target_norm_factor: float = 1.0
) -> Autoencoder:
    """A frozen dictionary of which no two weights are tied and none is zero; 8 → 24 if ``shape`` is None.

    Thresholds lie where about half of the latents exceed them.
    """
    made = architecture(name)(shape or Shape(D_IN, N_LATENTS), **SETTINGS[name])
    generator = torch.Generator().manual_seed(len(name))
    made.initialise(torch.randn(made.shape.d_out, generator=generator), generator)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        made.normalisation.norm_factor.fill_(norm_factor)
        if made.normalisation.transcodes:
            made.normalisation.target_norm_factor.fill_(target_norm_factor)
        if "threshold" in dict(made.named_buffers()):
            made.threshold.fill_(0.4)
    return made.requires_grad_(False).eval()


def activations(d_in: int, *batch: int, seed: int = 0) -> torch.Tensor:
    """Activations off the origin, of no special norm."""
    return 1.5 * torch.randn(*batch, d_in, generator=torch.Generator().manual_seed(seed)) + 0.4
