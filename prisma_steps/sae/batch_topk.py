"""BatchTopK autoencoder: so many latents a token on average."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from prisma_steps.sae.autoencoder import Autoencoder, Shape
from prisma_steps.sae.topk import check_k

#: Share of a new batch in the running threshold.
_THRESHOLD_RATE = 0.01


class BatchTopKAutoencoder(Autoencoder, name="batch_topk"):
    """The k · n largest latents of a batch of n tokens, from Bussmann et al. 2024, arXiv 2412.06410.

    A token alone has no batch to compete with: outside of training a latent fires above ``threshold``, the
    running mean of the smallest latent that a training batch kept (section 3.2 of the paper).
    """

    settings = ("k", "aux_k_coefficient")
    compete = True

    threshold: Float[Tensor, ""]

    def __init__(self, shape: Shape, k: int, aux_k_coefficient: float = 1 / 32) -> None:
        """Keep ``k`` latents a token on average.

        Raises:
            StepError: when there are fewer than ``k`` latents.
        """
        check_k(k, shape)
        super().__init__(shape, aux_k_coefficient)
        self.k = k
        # Negative until the first batch has set it.
        self.register_buffer("threshold", torch.full((), -1.0))

    def activate(self, pre_activations: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch latent"]:
        """Cut what does not exceed the threshold."""
        return pre_activations * (pre_activations > self.threshold.clamp_min(0))

    def activate_batch(self, pre_activations: Float[Tensor, "token latent"]) -> Float[Tensor, "token latent"]:
        """Keep the k · n largest of all tokens, and move the threshold."""
        positive = pre_activations.relu()
        flat = positive.flatten()
        top = flat.topk(self.k * len(positive), sorted=False)
        self._move_threshold(top.values.detach())
        return torch.zeros_like(flat).scatter(0, top.indices, top.values).view_as(positive)

    @torch.no_grad()
    def _move_threshold(self, kept: Float[Tensor, " kept"]) -> None:
        positive = kept[kept > 0]
        if len(positive) == 0:
            return
        smallest = positive.min()
        rate = 1.0 if self.threshold < 0 else _THRESHOLD_RATE
        self.threshold.lerp_(smallest.to(self.threshold.dtype), rate)
