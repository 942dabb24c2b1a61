"""Gated autoencoder: one part says which latents fire, another how strongly."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, relu

from prisma_steps.sae.autoencoder import Autoencoder, Shape, squared_error


class GatedAutoencoder(Autoencoder, name="gated"):
    """f = 1[π > 0] · relu((x − b_dec)(W_enc · exp(r_mag)) + b_mag), π = (x − b_dec) W_enc + b_gate.

    Rajamanoharan et al. 2024, arXiv 2404.16014, section 3.2. Both parts share W_enc up to a factor a latent.
    """

    settings = ("l1_coefficient", "aux_k_coefficient")
    biases = ("b_gate", "b_mag", "r_mag")

    b_gate: Float[Tensor, " latent"]
    b_mag: Float[Tensor, " latent"]
    r_mag: Float[Tensor, " latent"]

    def __init__(self, shape: Shape, l1_coefficient: float, aux_k_coefficient: float = 0.0) -> None:
        """Penalise the sum of the gates' pre-activations with weight ``l1_coefficient``."""
        super().__init__(shape, aux_k_coefficient)
        self.l1_coefficient = l1_coefficient

    def activate(self, pre_activations: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch latent"]:
        """Magnitudes where gates, the pre-activations, are open."""
        magnitudes = relu((pre_activations - self.b_gate) * self.r_mag.exp() + self.b_mag)
        return magnitudes * (pre_activations > 0)

    def penalty(
        self,
        pre_activations: Float[Tensor, "token latent"],
        latents: Float[Tensor, "token latent"],  # noqa: ARG002
        y: Float[Tensor, "token d_out"],
    ) -> Float[Tensor, ""]:
        """λ mean Σ_j relu(π_j) ‖W_dec,j‖ + mean‖y − ŷ(relu(π))‖², the decoder held fixed in the latter.

        The gate has no gradient of its own from ‖y − ŷ‖²: the last term trains it (equation 8 of the paper).
        """
        gates = relu(pre_activations)
        sparsity = self.l1_coefficient * (gates @ self.row_norms()).mean()
        frozen = F.linear(gates, self.W_dec.detach().T, self.b_dec.detach())
        return sparsity + squared_error(y, frozen)
