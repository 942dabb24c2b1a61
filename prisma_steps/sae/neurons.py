"""Neurons as a dictionary: the baseline that latents have to beat."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prisma_steps.sae.autoencoder import Shape
from prisma_steps.sae.topk import TopKAutoencoder

#: What of a neuron is a latent: its positive part, or its positive and its negative part, one each.
Sign = Literal["positive", "both"]


class NeuronBasis(TopKAutoencoder, name="neurons"):
    """f = the k largest of relu(x − b_dec), or of relu(x − b_dec) and relu(b_dec − x) side by side.

    What is encoded and decoded are single coordinates of x: neurons, or coordinates of the residual stream.
    As with any other TopK dictionary, the rest is taken to be b_dec. With both signs and all latents kept,
    x̂ is x. Nothing is trained.
    """

    settings = ("k",)

    def __init__(self, shape: Shape, k: int) -> None:
        """Keep the ``k`` largest.

        Raises:
            StepError: when there are fewer than ``k`` latents.
        """
        super().__init__(shape, k, aux_k_coefficient=0.0)


def neuron_basis(centre: Float[Tensor, " d_model"], sign: Sign, k: int | None) -> NeuronBasis:
    """The dictionary of single coordinates about ``centre``, ``k`` of which are kept (None = all).

    Raises:
        StepError: when there are fewer than ``k`` latents.
    """
    identity = torch.eye(len(centre))
    rows = identity if sign == "positive" else torch.cat([identity, -identity])
    made = NeuronBasis(Shape(len(centre), len(rows)), len(rows) if k is None else k)
    weights = {"W_enc": rows.T, "W_dec": rows, "b_enc": torch.zeros(len(rows)), "b_dec": centre}
    made.load_state_dict({**made.state_dict(), **weights})
    return made.requires_grad_(False)
