"""From the model's own space to the one that a dictionary is trained in, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

#: How inputs are normalised; outputs of an autoencoder or crosscoder are brought back by the same.
Normalise = Literal["none", "expected_norm", "layer_norm"]

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


class Normalisation(nn.Module):
    """Multiplies each layer by a factor ("expected_norm": E‖x‖ = √d_model), or standardises each token.

    With "layer_norm" the mean of a token over d_model is taken off and it is divided by its standard
    deviation; an autoencoder's output gets both back. The output of a transcoder belongs to another site,
    whose mean and deviation are not known where it is used: it has a factor of its own.
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
        if self.normalise != "layer_norm":
            factor = self._per_coordinate(self.norm_factor)
            back = self.target_norm_factor if self.transcodes else factor
            return Placed(x * factor, 1 / back, torch.zeros_like(back))
        layers = x.unflatten(-1, (self.n_layers, self.d_model))
        mean = layers.mean(-1, keepdim=True)
        deviation = (layers - mean).square().mean(-1, keepdim=True).sqrt() + _EPSILON
        normal = ((layers - mean) / deviation).flatten(-2)
        if self.transcodes:
            back = self.target_norm_factor
            return Placed(normal, 1 / back, torch.zeros_like(back))
        wide = layers.shape
        return Placed(normal, deviation.expand(wide).flatten(-2), mean.expand(wide).flatten(-2))

    def place_target(self, y: Float[Tensor, "*batch d_out"], placed: Placed) -> Float[Tensor, "*batch d_out"]:
        """What a normalised output should be, for the target ``y`` of the inputs ``placed``."""
        return y * self.target_norm_factor if self.transcodes else placed.x

    def _per_coordinate(self, factor: Float[Tensor, " layer"]) -> Tensor:
        return factor[0] if self.n_layers == 1 else factor.repeat_interleave(self.d_model)
