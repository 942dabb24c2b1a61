"""TopK autoencoder with the auxiliary loss that revives dead latents."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prisma_steps.sae.autoencoder import Autoencoder, Objective, squared_error
from prisma_steps.step import StepError


class TopKAutoencoder(Autoencoder, name="topk"):
    """f = relu(TopK_k((x − b_dec) W_enc + b_enc)), from Gao et al. 2024, arXiv 2406.04093, section 2.3."""

    settings = ("k", "aux_k_coefficient")

    def __init__(self, d_model: int, n_latents: int, k: int, aux_k_coefficient: float) -> None:
        """Keep ``k`` latents a token.

        Raises:
            StepError: when there are fewer than ``k`` latents.
        """
        if k > n_latents:
            raise StepError(
                f"k = {k} is more than the dictionary's {n_latents} latents: lower k or raise expansion"
            )
        super().__init__(d_model, n_latents)
        self.k = k
        self.aux_k_coefficient = aux_k_coefficient

    def activate(self, pre_activations: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch latent"]:
        """Keep the ``k`` largest of each token and cut what is negative."""
        return keep_largest(pre_activations, self.k).relu()

    def objective(
        self,
        x: Float[Tensor, "token d_model"],
        sparsity_scale: float,  # noqa: ARG002
        dead: Bool[Tensor, " latent"],
    ) -> Objective:
        """mean‖x − x̂‖² + α AuxK (Gao et al. 2024, section 2.4)."""
        pre_activations = self.pre_activations(x)
        latents = self.activate(pre_activations)
        x_hat = self.reconstruct(latents)
        error = squared_error(x, x_hat)
        aux = self.aux_k_coefficient * self.aux_k(pre_activations, (x - x_hat).detach(), dead)
        return Objective(error + aux, error, aux, torch.count_nonzero(latents.detach(), dim=0))

    def aux_k(
        self,
        pre_activations: Float[Tensor, "token latent"],
        residual: Float[Tensor, "token d_model"],
        dead: Bool[Tensor, " latent"],
    ) -> Float[Tensor, ""]:
        """Mean over tokens of ‖e − ê‖², where the d_model/2 largest dead latents reconstruct the residual e.

        Negative pre-activations are not cut here: a latent that is below zero on every token would get no
        gradient and stay dead.
        """
        dead_latents = dead.nonzero().squeeze(1)
        if len(dead_latents) == 0:
            return residual.new_zeros(())
        k_aux = min(residual.shape[1] // 2, len(dead_latents))
        latents = keep_largest(pre_activations[:, dead_latents], k_aux)
        return squared_error(residual, latents @ self.W_dec[dead_latents])


def keep_largest(values: Float[Tensor, "*batch latent"], k: int) -> Float[Tensor, "*batch latent"]:
    """``values`` with all but the ``k`` largest of the last dim set to zero."""
    top = values.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(values).scatter(-1, top.indices, top.values)
