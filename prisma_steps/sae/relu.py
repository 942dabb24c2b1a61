"""ReLU autoencoder with an L1 penalty ("vanilla")."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, relu

from prisma_steps.sae.autoencoder import Autoencoder, Shape


class ReLUAutoencoder(Autoencoder, name="relu"):
    """f = relu((x − b_dec) W_enc + b_enc), from Bricken et al. 2023, "Towards Monosemanticity"."""

    settings = ("l1_coefficient", "aux_k_coefficient")

    def __init__(self, shape: Shape, l1_coefficient: float, aux_k_coefficient: float = 0.0) -> None:
        """Penalise the sum of the latents with weight ``l1_coefficient``."""
        super().__init__(shape, aux_k_coefficient)
        self.l1_coefficient = l1_coefficient

    def activate(self, pre_activations: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch latent"]:
        """Cut what is negative."""
        return relu(pre_activations)

    def penalty(
        self,
        pre_activations: Float[Tensor, "token latent"],  # noqa: ARG002
        latents: Float[Tensor, "token latent"],
        y: Float[Tensor, "token d_out"],  # noqa: ARG002
    ) -> Float[Tensor, ""]:
        """λ mean Σ_j f_j Σ_layer ‖W_dec,j,layer‖ (Anthropic, April 2024 update; Lindsey et al. 2024)."""
        return self.l1_coefficient * (latents @ self.row_norms()).mean()
