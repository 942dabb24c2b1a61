"""Loss and gradients of a training batch by automatic differentiation: every architecture, every device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prisma_steps.precision import ComputeDtype
from prisma_steps.sae.autoencoder import Autoencoder, Objective


class Gradients(Protocol):
    """The objective of a batch, and its gradient by the name of the parameter."""

    def __call__(
        self,
        x: Float[Tensor, "token d_in"],
        y: Float[Tensor, "token d_out"],
        sparsity_scale: float,
        dead: Bool[Tensor, " latent"],
    ) -> tuple[Objective, Mapping[str, Tensor]]:
        """As ``Autoencoder.objective``."""
        ...


class AutogradGradients:
    """What ``objective`` differentiates to. In bfloat16 the matrix products are, sums and weights are not."""

    def __init__(self, autoencoder: Autoencoder, compute_dtype: ComputeDtype) -> None:
        """Gradients of ``autoencoder``, on its device."""
        self._autoencoder = autoencoder
        self._bfloat16 = compute_dtype == "bfloat16"

    def __call__(
        self,
        x: Float[Tensor, "token d_in"],
        y: Float[Tensor, "token d_out"],
        sparsity_scale: float,
        dead: Bool[Tensor, " latent"],
    ) -> tuple[Objective, Mapping[str, Tensor]]:
        """As ``Autoencoder.objective``."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self._bfloat16):
            objective = self._autoencoder.objective(x, y, sparsity_scale, dead)
        parameters = dict(self._autoencoder.named_parameters())
        # A parameter may be out of a batch: a JumpReLU threshold far from every token's pre-activations.
        found = torch.autograd.grad(
            objective.loss, list(parameters.values()), allow_unused=True, materialize_grads=True
        )
        return objective, dict(zip(parameters, found, strict=True))
