"""JumpReLU autoencoder: every latent has a threshold of its own, trained against the number that fire."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prisma_steps.sae.autoencoder import Autoencoder, Shape


class JumpReLUAutoencoder(Autoencoder, name="jumprelu"):
    """f = z · 1[z > θ] of pre-activations z, from Rajamanoharan et al. 2024, arXiv 2407.14435.

    θ = exp(log_threshold) > 0. A step has no gradient: straight-through estimators take that of a ramp of
    width ``bandwidth`` (equations 11 and 12 of the paper). The paper's bandwidth and first threshold, 0.001,
    are for inputs with E‖x‖² = 1; those here are for E‖x‖ = √d_model.
    """

    settings = ("l0_coefficient", "bandwidth", "aux_k_coefficient")
    biases = ("b_enc", "log_threshold")

    log_threshold: Float[Tensor, " latent"]

    def __init__(
        self, shape: Shape, l0_coefficient: float, bandwidth: float = 0.05, aux_k_coefficient: float = 0.0
    ) -> None:
        """Penalise the number of latents that fire with weight ``l0_coefficient``."""
        super().__init__(shape, aux_k_coefficient)
        self.l0_coefficient = l0_coefficient
        self.bandwidth = bandwidth

    @torch.no_grad()
    def reset_biases(self, latents: Int[Tensor, " some_latents"]) -> None:
        """Biases of 0, and thresholds of a fifth of the bandwidth."""
        super().reset_biases(latents)
        self.log_threshold[latents] = math.log(self.bandwidth / 5)

    @property
    def threshold(self) -> Float[Tensor, " latent"]:
        """θ, above which a latent fires."""
        return self.log_threshold.exp()

    def activate(self, pre_activations: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch latent"]:
        """Cut what does not exceed its threshold."""
        made: Any = _JumpReLU.apply(pre_activations, self.threshold, self.bandwidth)
        return made

    def penalty(
        self,
        pre_activations: Float[Tensor, "token latent"],
        latents: Float[Tensor, "token latent"],  # noqa: ARG002
        y: Float[Tensor, "token d_out"],  # noqa: ARG002
    ) -> Float[Tensor, ""]:
        """λ times the mean number of latents that fire."""
        fires: Any = _Step.apply(pre_activations, self.threshold, self.bandwidth)
        return self.l0_coefficient * fires.sum(1).mean()


def _near(z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """The kernel K((z − θ)/ε) / ε: 1/ε within half a bandwidth of the threshold."""
    return ((z - threshold).abs() < bandwidth / 2) / bandwidth


class _Step(torch.autograd.Function):
    """1[z > θ] with the pseudo-derivative −K((z − θ)/ε)/ε for θ and none for z."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        z, threshold = ctx.saved_tensors
        slope = -_near(z, threshold, ctx.bandwidth) * gradients[0]
        return None, slope.sum(0), None


class _JumpReLU(torch.autograd.Function):
    """z · 1[z > θ] with the derivative 1[z > θ] for z and the pseudo-derivative −θ K((z − θ)/ε)/ε for θ."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return z * (z > threshold)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        z, threshold = ctx.saved_tensors
        slope = -threshold * _near(z, threshold, ctx.bandwidth) * gradients[0]
        return gradients[0] * (z > threshold), slope.flatten(0, -2).sum(0), None
