"""From the model's own space to the one that a dictionary is trained in, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

#: How inputs are normalised; outputs of an autoencoder or crosscoder are brought back by the same.
Normalise = Literal["none", "expected_norm", "layer_norm", "token_norm"]

#: Added to a token's standard deviation, so that a token of equal values is not divided by zero.
_EPSILON = 1e-5


@dataclass(frozen=True)
class Placed:
    """Tokens in the normalised space, and the way back.

    Attributes:
        x: normalised tokens, layers side by side.
        scale: what a normalised output is multiplied by, a number a token and coordinate or one for all.
        shift: what is then added.
    """

    x: Float[Tensor, "*batch d_in"]
    scale: Tensor
    shift: Tensor

    def restore(self, y: Float[Tensor, "*batch d_out"]) -> Float[Tensor, "*batch d_out"]:
        """Outputs in the model's own space."""
        return y * self.scale + self.shift


def _standardised(layers: Float[Tensor, "*batch layer d_model"]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of mean 0 and standard deviation 1 over d_model, their deviation and their mean.

    As SAELens and ViT-Prisma have it, so that their dictionaries mean the same here: the deviation is the
    unbiased one, and what keeps it off zero is not given back.
    """
    mean, deviation = layers.mean(-1, keepdim=True), layers.std(-1, keepdim=True)
    return (layers - mean) / (deviation + _EPSILON), deviation, mean


def _scaled(layers: Float[Tensor, "*batch layer d_model"]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of norm √d_model, and what brings theirs back; a token of zeros stays one."""
    scale = layers.norm(dim=-1, keepdim=True) / layers.shape[-1] ** 0.5
    return layers / scale.clamp_min(torch.finfo(scale.dtype).tiny), scale, torch.zeros_like(scale)


#: What normalises each token by itself: normalised tokens, the scale and the shift back.
_BY_TOKEN: Mapping[str, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]] = {
    "layer_norm": _standardised,
    "token_norm": _scaled,
}


class Normalisation(nn.Module):
    """Multiplies each layer by a factor ("expected_norm": E‖x‖ = √d_model), or normalises each token.

    With "layer_norm" the mean of a token over d_model is taken off and it is divided by its standard
    deviation, with "token_norm" it is brought to ‖x‖ = √d_model; an autoencoder's output gets back what was
    taken. The output of a transcoder belongs to another site, whose mean and scale are not known where it is
    used: it has a factor of its own.
    """

    def __init__(self, normalise: Normalise, n_layers: int, d_model: int, *, transcodes: bool) -> None:
        """Factors of 1, for ``n_layers`` inputs of ``d_model`` coordinates."""
        super().__init__()
        self.normalise: Normalise = normalise
        self.n_layers = n_layers
        self.d_model = d_model
        self.transcodes = transcodes
        self.norm_factor: Float[Tensor, " layer"]
        self.register_buffer("norm_factor", torch.ones(n_layers))
        self.target_norm_factor: Float[Tensor, ""]
        self.register_buffer("target_norm_factor", torch.ones(()))

    def place(self, x: Float[Tensor, "*batch d_in"]) -> Placed:
        """Inputs in the normalised space, layers side by side in the last dim."""
        if self.normalise not in _BY_TOKEN:
            factor = self._per_coordinate(self.norm_factor)
            back = self.target_norm_factor if self.transcodes else factor
            return Placed(x * factor, 1 / back, torch.zeros_like(back))
        layers = x.unflatten(-1, (self.n_layers, self.d_model))
        normal, scale, shift = _BY_TOKEN[self.normalise](layers)
        if self.transcodes:
            back = self.target_norm_factor
            return Placed(normal.flatten(-2), 1 / back, torch.zeros_like(back))
        scale, shift = (part.expand(layers.shape).flatten(-2) for part in (scale, shift))
        return Placed(normal.flatten(-2), scale, shift)

    def place_target(self, y: Float[Tensor, "*batch d_out"], placed: Placed) -> Float[Tensor, "*batch d_out"]:
        """What a normalised output should be, for the target ``y`` of the inputs ``placed``."""
        return y * self.target_norm_factor if self.transcodes else placed.x

    def _per_coordinate(self, factor: Float[Tensor, " layer"]) -> Tensor:
        return factor[0] if self.n_layers == 1 else factor.repeat_interleave(self.d_model)
