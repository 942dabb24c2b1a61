"""Matryoshka autoencoder: the first latents must do alone, too."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from prisma_steps.sae.autoencoder import Shape
from prisma_steps.sae.batch_topk import BatchTopKAutoencoder
from prisma_steps.step import StepError

#: Shares of the latents in the nested dictionaries of the paper: 2,048 … 65,536 latents.
PREFIXES = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0)


class MatryoshkaAutoencoder(BatchTopKAutoencoder, name="matryoshka"):
    """BatchTopK whose nested prefixes each reconstruct, from Bussmann et al. 2025, arXiv 2503.17547.

    The loss is the sum over prefixes of mean‖y − ŷ‖², where ŷ is made of the latents of the prefix alone.
    """

    settings = ("k", "aux_k_coefficient", "prefixes")

    def __init__(
        self,
        shape: Shape,
        k: int,
        aux_k_coefficient: float = 1 / 32,
        prefixes: Sequence[float] = PREFIXES,
    ) -> None:
        """Nest dictionaries of the shares ``prefixes`` of the latents, the last of which is 1.

        Raises:
            StepError: when the shares do not rise to 1, or leave a dictionary without latents.
        """
        super().__init__(shape, k, aux_k_coefficient)
        self.prefixes = list(prefixes)
        self.ends = [round(share * shape.n_latents) for share in prefixes]
        rises = all(low < high for low, high in zip([0, *self.ends], self.ends, strict=False))
        if not rises or self.prefixes[-1:] != [1]:
            raise StepError(
                f"prefixes = {self.prefixes} of {shape.n_latents} latents are dictionaries of {self.ends}: "
                "they must grow, from 1 latent or more to all of them (1.0)"
            )

    def reconstructions(
        self, latents: Float[Tensor, "token latent"], x: Float[Tensor, "token d_in"]
    ) -> Sequence[Float[Tensor, "token d_out"]]:
        """One for each prefix."""
        y_hat = self.b_dec + x @ self.W_skip if self.shape.skip else self.b_dec
        made = []
        for start, end in zip([0, *self.ends], self.ends, strict=False):
            y_hat = y_hat + F.linear(latents[:, start:end], self.W_dec[start:end].T)
            made.append(y_hat)
        return made
