"""TopK autoencoder: so many latents a token."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from prisma_steps.sae.autoencoder import Autoencoder, Shape, keep_largest
from prisma_steps.step import StepError


class TopKAutoencoder(Autoencoder, name="topk"):
    """f = relu(TopK_k((x − b_dec) W_enc + b_enc)), from Gao et al. 2024, arXiv 2406.04093, section 2.3."""

    settings = ("k", "aux_k_coefficient")
    compete = True

    def __init__(self, shape: Shape, k: int, aux_k_coefficient: float = 1 / 32) -> None:
        """Keep ``k`` latents a token.

        Raises:
            StepError: when there are fewer than ``k`` latents.
        """
        check_k(k, shape)
        super().__init__(shape, aux_k_coefficient)
        self.k = k

    def activate(self, pre_activations: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch latent"]:
        """Keep the ``k`` largest of each token and cut what is negative."""
        return keep_largest(pre_activations, self.k).relu()


def check_k(k: int, shape: Shape) -> None:
    """Refuse to keep more latents than there are.

    Raises:
        StepError: saying how many there are.
    """
    if k > shape.n_latents:
        raise StepError(
            f"k = {k} is more than the dictionary's {shape.n_latents} latents: lower k or raise expansion"
        )
