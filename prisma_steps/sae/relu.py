"""ReLU autoencoder with an L1 penalty ("vanilla")."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, count_nonzero, relu

from prisma_steps.sae.autoencoder import Autoencoder, Objective, squared_error


class ReLUAutoencoder(Autoencoder, name="relu"):
    """f = relu((x − b_dec) W_enc + b_enc), from Bricken et al. 2023, "Towards Monosemanticity"."""

    settings = ("l1_coefficient",)

    def __init__(self, d_model: int, n_latents: int, l1_coefficient: float) -> None:
        """Penalise the sum of the latents with weight ``l1_coefficient``."""
        super().__init__(d_model, n_latents)
        self.l1_coefficient = l1_coefficient

    def activate(self, pre_activations: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch latent"]:
        """Cut what is negative."""
        return relu(pre_activations)

    def objective(
        self,
        x: Float[Tensor, "token d_model"],
        sparsity_scale: float,
        dead: Bool[Tensor, " latent"],  # noqa: ARG002
    ) -> Objective:
        """mean‖x − x̂‖² + λ mean Σ_j f_j ‖W_dec,j‖ (Anthropic, April 2024 update), where ‖W_dec,j‖ = 1."""
        latents = self.activate(self.pre_activations(x))
        error = squared_error(x, self.reconstruct(latents))
        penalty = (sparsity_scale * self.l1_coefficient) * latents.sum(1).mean()
        return Objective(error + penalty, error, penalty, count_nonzero(latents.detach(), dim=0))
