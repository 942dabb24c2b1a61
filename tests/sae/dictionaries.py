"""Dictionaries in general position, for tests of what is done with them."""

from __future__ import annotations

from typing import Any

import torch

from prisma_steps.sae.architectures import architecture
from prisma_steps.sae.autoencoder import Autoencoder, Shape

#: Settings of every architecture, none of them a default.
SETTINGS: dict[str, dict[str, Any]] = {
    "relu": {"l1_coefficient": 0.7},
    "gated": {"l1_coefficient": 0.4},
    "topk": {"k": 5, "aux_k_coefficient": 0.25},
    "batch_topk": {"k": 4, "aux_k_coefficient": 0.25},
    "matryoshka": {"k": 4, "prefixes": [0.25, 0.5, 1.0]},
    "jumprelu": {"l0_coefficient": 0.3, "bandwidth": 0.1},
}


def dictionary(
    name: str, shape: Shape | None = None, norm_factor: float = 1.0, target_norm_factor: float = 1.0
) -> Autoencoder:
    """A frozen dictionary of which no two weights are tied and none is zero or of unit norm.

    Thresholds lie where about half of the latents exceed them.
    """
    made = architecture(name)(shape or Shape(8, 24), **SETTINGS[name])
    generator = torch.Generator().manual_seed(len(name))
    made.initialise(torch.randn(made.shape.d_out, generator=generator), generator)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        made.normalisation.norm_factor.fill_(norm_factor)
        if made.normalisation.transcodes:
            made.normalisation.target_norm_factor.fill_(target_norm_factor)
        for name, buffer in made.named_buffers(recurse=False):
            assert name == "threshold"
            buffer.fill_(0.4)
    return made.requires_grad_(False).eval()


def activations(d_in: int, *batch: int, seed: int = 0) -> torch.Tensor:
    """Activations off the origin, of no special norm."""
    return 1.5 * torch.randn(*batch, d_in, generator=torch.Generator().manual_seed(seed)) + 0.4
