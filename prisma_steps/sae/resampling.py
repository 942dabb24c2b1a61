"""Resampling of dead latents: they start anew from tokens that are reconstructed badly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prisma_steps.sae.autoencoder import Autoencoder

_SHARE = 0.2


@torch.no_grad()
def resample(
    autoencoder: Autoencoder,
    x: Float[Tensor, "token d_in"],
    y: Float[Tensor, "token d_out"],
    dead: Bool[Tensor, " latent"],
    generator: torch.Generator,
) -> Int[Tensor, " resampled"]:
    """Point dead latents at tokens drawn with probability ∝ ‖y − ŷ‖⁴ (Bricken et al. 2023, appendix).

    A decoder row becomes the target's direction from b_dec, biases 0, and the encoder row the direction of
    the input, at a fifth of the mean norm of the living, so that it disturbs little; at all of it where
    latents compete, and it would lose.

    Args:
        autoencoder: changed in place.
        x: normalised inputs to draw from.
        y: their normalised targets.
        dead: which latents to resample.
        generator: of the draw, on the CPU.

    Returns:
        The latents resampled, whose optimiser moments are void now. At most one a token.
    """
    latents = dead.nonzero().squeeze(1)
    y_hat = autoencoder.reconstruct(autoencoder.latents(x), x)
    weight = (y - y_hat).square().sum(1).square().cpu()
    latents = latents[: int((weight > 0).sum())]
    if len(latents) == 0:
        return latents
    drawn = torch.multinomial(weight, len(latents), generator=generator).to(x.device)
    living = autoencoder.W_enc.T[~dead]
    norm = living.norm(dim=1).mean() if len(living) else autoencoder.W_enc.new_ones(())
    autoencoder.W_dec[latents] = F.normalize(y[drawn] - autoencoder.b_dec, dim=1)
    encoder = F.normalize(autoencoder.centred(x[drawn]), dim=1)
    autoencoder.W_enc.T[latents] = encoder * (norm if autoencoder.compete else _SHARE * norm)
    autoencoder.reset_biases(latents)
    return latents
