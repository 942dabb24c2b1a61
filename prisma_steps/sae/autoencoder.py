"""What every sparse autoencoder shares: weights, spaces, initialisation, constraints and the registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

_REGISTRY: dict[str, type[Autoencoder]] = {}


class Objective(NamedTuple):
    """What one training batch amounts to, in the space of the normalised input.

    Attributes:
        loss: what is minimised.
        squared_error: mean over tokens of ‖x − x̂‖², a part of ``loss``.
        sparsity_loss: what ``loss`` adds to ``squared_error``.
        firings: tokens of the batch on which each latent is active.
    """

    loss: Float[Tensor, ""]
    squared_error: Float[Tensor, ""]
    sparsity_loss: Float[Tensor, ""]
    firings: Int[Tensor, " latent"]


class Autoencoder(nn.Module, ABC):
    """A sparse autoencoder: x̂ = f W_dec + b_dec with sparse f = activate((x − b_dec) W_enc + b_enc).

    Weights live in the space of the normalised input, x times ``norm_factor``. ``encode`` and ``decode`` are
    called in the model's own space; ``pre_activations``, ``reconstruct`` and ``objective`` in the normalised
    one. An architecture is a subclass, ``class Mine(Autoencoder, name="mine")``, which says how
    pre-activations become latents and what is minimised.

    Attributes:
        architecture: the name that experiments use.
        settings: names of the constructor's own arguments, kept as attributes and stored with the weights.
            The first is the one that sets how sparse the latents are.
    """

    architecture: ClassVar[str]
    settings: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls, *, name: str, **kwargs: Any) -> None:
        """Register an architecture.

        Raises:
            ValueError: when another class has the name.
        """
        super().__init_subclass__(**kwargs)
        other = _REGISTRY.get(name)
        if other is not None:
            raise ValueError(f"architecture {name!r} is taken by {other.__module__}.{other.__qualname__}")
        cls.architecture = name
        _REGISTRY[name] = cls

    def __init__(self, d_model: int, n_latents: int) -> None:
        """Make room for the weights of ``n_latents`` latents; ``initialise`` or a state dict fills them."""
        super().__init__()
        self.W_enc = nn.Parameter(torch.empty(d_model, n_latents))
        self.W_dec = nn.Parameter(torch.empty(n_latents, d_model))
        self.b_enc = nn.Parameter(torch.empty(n_latents))
        self.b_dec = nn.Parameter(torch.empty(d_model))
        self.norm_factor: Float[Tensor, ""]
        self.register_buffer("norm_factor", torch.ones(()))

    @torch.no_grad()
    def initialise(
        self, b_dec: Float[Tensor, " d_model"], norm_factor: float, generator: torch.Generator
    ) -> None:
        """Start from random unit directions with a tied encoder.

        Args:
            b_dec: a centre of the *normalised* activations.
            norm_factor: what normalises them.
            generator: of the directions.
        """
        directions = torch.randn(self.W_dec.shape, generator=generator)
        self.W_dec.copy_(F.normalize(directions, dim=1))
        self.W_enc.copy_(self.W_dec.T)
        self.b_enc.zero_()
        self.b_dec.copy_(b_dec)
        self.norm_factor.fill_(norm_factor)

    @property
    def sparsity_setting(self) -> str:
        """What sets how sparse the latents are, for labels: "k = 32"."""
        return f"{self.settings[0]} = {getattr(self, self.settings[0]):g}"

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch latent"]:
        """Latents of activations ``x`` of the model."""
        return self.activate(self.pre_activations(x * self.norm_factor))

    def decode(self, latents: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch d_model"]:
        """Reconstruction of activations of the model."""
        return self.reconstruct(latents) / self.norm_factor

    def pre_activations(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch latent"]:
        """(x − b_dec) W_enc + b_enc of normalised ``x``."""
        return F.linear(x - self.b_dec, self.W_enc.T, self.b_enc)

    def reconstruct(self, latents: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch d_model"]:
        """x̂ = f W_dec + b_dec in the normalised space."""
        return F.linear(latents, self.W_dec.T, self.b_dec)

    @abstractmethod
    def activate(self, pre_activations: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch latent"]:
        """Non-negative latents of pre-activations; a latent fires where it is positive."""

    @abstractmethod
    def objective(
        self, x: Float[Tensor, "token d_model"], sparsity_scale: float, dead: Bool[Tensor, " latent"]
    ) -> Objective:
        """The loss of normalised ``x``.

        Args:
            x: a batch.
            sparsity_scale: share of the sparsity coefficient that is in force, in [0, 1].
            dead: latents that have not fired lately.
        """

    def constrain_gradients(self) -> None:
        """Remove from the decoder's gradient its component along each row (Bricken et al. 2023).

        Without it Adam's moments fill with a direction that ``constrain_weights`` takes back.
        """
        rows, gradient = self.W_dec.detach(), cast(Tensor, self.W_dec.grad)
        gradient.addcmul_(rows, (gradient * rows).sum(1, keepdim=True), value=-1)

    @torch.no_grad()
    def constrain_weights(self) -> None:
        """Bring decoder rows back to unit norm, so that a penalty cannot be dodged by long rows."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))


def squared_error(
    x: Float[Tensor, "token d_model"], x_hat: Float[Tensor, "token d_model"]
) -> Float[Tensor, ""]:
    """Mean over tokens of ‖x − x̂‖²."""
    return (x - x_hat).square().sum(1).mean()


def registered() -> Mapping[str, type[Autoencoder]]:
    """The architectures registered so far, by name."""
    return dict(_REGISTRY)
