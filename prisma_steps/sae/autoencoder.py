"""What every sparse autoencoder, transcoder and crosscoder shares: weights, spaces, loss and the registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from prisma_steps.sae.normalisation import Normalisation, Normalise

_REGISTRY: dict[str, type[Autoencoder]] = {}


class Objective(NamedTuple):
    """What one training batch amounts to, in the normalised space.

    Attributes:
        loss: what is minimised.
        squared_error: mean over tokens of ‖y − ŷ‖², a part of ``loss`` (of Matryoshka the last prefix's).
        sparsity_loss: what ``loss`` adds to the reconstruction.
        firings: tokens of the batch on which each latent is active.
    """

    loss: Float[Tensor, ""]
    squared_error: Float[Tensor, ""]
    sparsity_loss: Float[Tensor, ""]
    firings: Int[Tensor, " latent"]


@dataclass(frozen=True)
class Shape:
    """What a dictionary reads and writes, whatever its architecture.

    Attributes:
        d_model: width of one input.
        n_latents: latents.
        n_layers: inputs side by side: more than one makes a crosscoder (Lindsey et al. 2024), which
            reconstructs them all.
        d_target: width of the output of a transcoder (Dunefsky et al. 2024, arXiv 2406.11944); None for what
            reconstructs its input.
        skip: whether a transcoder adds a linear map of its input (Paulo et al. 2025).
        subtract_b_dec: whether b_dec is taken off the input: of an autoencoder only, and not of all.
        normalise: how inputs are normalised.
        unit_norm: whether decoder rows are held at unit norm.
    """

    d_model: int
    n_latents: int
    n_layers: int = 1
    d_target: int | None = None
    skip: bool = False
    subtract_b_dec: bool = True
    normalise: Normalise = "none"
    unit_norm: bool = True

    @property
    def kind(self) -> str:
        """``autoencoder``, ``transcoder`` or ``crosscoder``."""
        if self.d_target is not None:
            return "transcoder"
        return "crosscoder" if self.n_layers > 1 else "autoencoder"

    @property
    def d_in(self) -> int:
        """Coordinates read, of all layers."""
        return self.n_layers * self.d_model

    @property
    def d_out(self) -> int:
        """Coordinates written, of all layers."""
        return self.d_in if self.d_target is None else self.d_target


class Autoencoder(nn.Module, ABC):
    """A sparse dictionary: ŷ = f W_dec + b_dec with sparse f = activate((x − b_dec) W_enc + b_enc).

    An autoencoder has y = x. A transcoder and a crosscoder do not subtract b_dec from x; a crosscoder's x is
    its layers side by side. Weights live in the space of the normalised tokens. ``encode``, ``decode`` and a
    call are in the model's own space; everything else is in the normalised one. An architecture is a
    subclass, ``class Mine(Autoencoder, name="mine")``, which says how pre-activations become latents and what
    is minimised.

    Attributes:
        architecture: the name that experiments use.
        settings: names of the constructor's own arguments, kept as attributes and stored with the weights.
            The first is the one that sets how sparse the latents are.
        biases: names of the weights that have one number a latent.
        compete: whether latents fire only by being larger than others.
    """

    architecture: ClassVar[str]
    settings: ClassVar[tuple[str, ...]]
    biases: ClassVar[tuple[str, ...]] = ("b_enc",)
    compete: ClassVar[bool] = False

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

    def __init__(self, shape: Shape, aux_k_coefficient: float = 0.0) -> None:
        """Make room for the weights; ``initialise`` or a state dict fills them.

        Args:
            shape: what is read and written.
            aux_k_coefficient: weight of the loss that revives dead latents (Gao et al. 2024, section 2.4).
        """
        super().__init__()
        self.shape = shape
        self.aux_k_coefficient = aux_k_coefficient
        # A latent is two rows in memory, one of each: to update it touches no others.
        self.W_enc = nn.Parameter(torch.empty(shape.n_latents, shape.d_in).T)
        self.W_dec = nn.Parameter(torch.empty(shape.n_latents, shape.d_out))
        for name in self.biases:
            setattr(self, name, nn.Parameter(torch.empty(shape.n_latents)))
        self.b_dec = nn.Parameter(torch.empty(shape.d_out))
        if shape.skip:
            self.W_skip = nn.Parameter(torch.empty(shape.d_in, shape.d_out))
        transcodes = shape.d_target is not None
        self.normalisation = Normalisation(
            shape.normalise, shape.n_layers, shape.d_model, transcodes=transcodes
        )

    @torch.no_grad()
    def initialise(self, b_dec: Float[Tensor, " d_out"], generator: torch.Generator) -> None:
        """Start from random unit directions with a tied encoder.

        Without competition half of the latents fire at first, and reconstruct n_latents / (2 d_in) times the
        input: where that is more than the input, the encoder starts so much smaller. A transcoder's encoder
        starts from directions of its own where its input has another width.

        Args:
            b_dec: a centre of the *normalised* targets.
            generator: of the directions.
        """
        self.W_dec.copy_(_unit_rows(self.W_dec.shape, generator))
        tied = self.shape.d_in == self.shape.d_out
        encoder = self.W_dec if tied else _unit_rows(self.W_enc.T.shape, generator)
        norm = 1.0 if self.compete else min(1.0, 2 * self.shape.d_in / self.shape.n_latents)
        self.W_enc.copy_(encoder.T * norm)
        self.reset_biases(torch.arange(self.shape.n_latents))
        self.b_dec.copy_(b_dec)
        if self.shape.skip:
            self.W_skip.zero_()

    @torch.no_grad()
    def reset_biases(self, latents: Int[Tensor, " some_latents"]) -> None:
        """Bring the biases of ``latents`` to what they start from."""
        for name in self.biases:
            getattr(self, name)[latents] = 0.0

    @property
    def sparsity_setting(self) -> str:
        """What sets how sparse the latents are, for labels: "k = 32"."""
        return f"{self.settings[0]} = {getattr(self, self.settings[0]):g}"

    # --- in the model's own space

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch latent"]:
        """Latents of activations ``x`` of the model."""
        return self.latents(self.normalisation.place(x).x)

    def decode(
        self, latents: Float[Tensor, "*batch latent"], x: Float[Tensor, "*batch d_in"]
    ) -> Float[Tensor, "*batch d_out"]:
        """What ``latents`` say of the target of ``x``, whose own scale and linear skip it gets."""
        placed = self.normalisation.place(x)
        return placed.restore(self.reconstruct(latents, placed.x))

    def forward(
        self, x: Float[Tensor, "*batch d_in"]
    ) -> tuple[Float[Tensor, "*batch latent"], Float[Tensor, "*batch d_out"]]:
        """Latents of ``x``, and what they say of its target."""
        placed = self.normalisation.place(x)
        latents = self.latents(placed.x)
        return latents, placed.restore(self.reconstruct(latents, placed.x))

    # --- in the normalised space

    def latents(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch latent"]:
        """Latents of normalised ``x``."""
        return self.activate(self.pre_activations(x))

    def pre_activations(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch latent"]:
        """(x − b_dec) W_enc + b_enc of normalised ``x``."""
        return F.linear(self.centred(x), self.W_enc.T, self.encoder_bias)

    @property
    def encoder_bias(self) -> Float[Tensor, " latent"]:
        """The bias of ``pre_activations``."""
        return getattr(self, self.biases[0])

    def centred(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """``x`` as the encoder sees it."""
        return x - self.b_dec if self.subtracts_b_dec else x

    @property
    def subtracts_b_dec(self) -> bool:
        """Whether the encoder takes b_dec off its input."""
        return self.shape.subtract_b_dec and self.shape.kind == "autoencoder"

    def reconstruct(
        self, latents: Float[Tensor, "*batch latent"], x: Float[Tensor, "*batch d_in"]
    ) -> Float[Tensor, "*batch d_out"]:
        """ŷ = f W_dec + b_dec, and + x W_skip of a transcoder with a skip."""
        y_hat = F.linear(latents, self.W_dec.T, self.b_dec)
        return y_hat + x @ self.W_skip if self.shape.skip else y_hat

    @abstractmethod
    def activate(self, pre_activations: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch latent"]:
        """Non-negative latents of pre-activations; a latent fires where it is positive."""

    def activate_batch(self, pre_activations: Float[Tensor, "token latent"]) -> Float[Tensor, "token latent"]:
        """Latents of a training batch: as any others, unless tokens of a batch compete."""
        return self.activate(pre_activations)

    def objective(
        self,
        x: Float[Tensor, "token d_in"],
        y: Float[Tensor, "token d_out"],
        sparsity_scale: float,
        dead: Bool[Tensor, " latent"],
    ) -> Objective:
        """mean‖y − ŷ‖² + sparsity_scale · penalty + α AuxK.

        Args:
            x: a batch of inputs.
            y: its targets, for an autoencoder ``x`` itself.
            sparsity_scale: share of the sparsity coefficient that is in force, in [0, 1].
            dead: latents that have not fired lately.
        """
        pre_activations = self.pre_activations(x)
        latents = self.activate_batch(pre_activations)
        y_hats = self.reconstructions(latents, x)
        error = squared_error(y, y_hats[-1])
        sparsity = sparsity_scale * self.penalty(pre_activations, latents, y)
        if self.aux_k_coefficient and dead.any():
            sparsity = sparsity + self.aux_k_coefficient * self.aux_k(x, (y - y_hats[-1]).detach(), dead)
        reconstruction = sum((squared_error(y, y_hat) for y_hat in y_hats[:-1]), error)
        firings = torch.count_nonzero(latents.detach(), dim=0)
        return Objective(reconstruction + sparsity, error, sparsity, firings)

    def reconstructions(
        self, latents: Float[Tensor, "token latent"], x: Float[Tensor, "token d_in"]
    ) -> Sequence[Float[Tensor, "token d_out"]]:
        """What is compared with the target; the last is ``reconstruct``."""
        return [self.reconstruct(latents, x)]

    def penalty(
        self,
        pre_activations: Float[Tensor, "token latent"],
        latents: Float[Tensor, "token latent"],  # noqa: ARG002
        y: Float[Tensor, "token d_out"],  # noqa: ARG002
    ) -> Float[Tensor, ""]:
        """What makes latents sparse, beside ``activate_batch``; 0 where that does it alone."""
        return pre_activations.new_zeros(())

    def aux_k(
        self,
        x: Float[Tensor, "token d_in"],
        residual: Float[Tensor, "token d_out"],
        dead: Bool[Tensor, " latent"],
    ) -> Float[Tensor, ""]:
        """``dead_error`` of the latents that are ``dead``."""
        which = dead.nonzero().squeeze(1)
        encoder, bias = self.W_enc.T[which], self.encoder_bias[which]
        return dead_error(self.centred(x), residual, encoder, bias, self.W_dec[which])

    # --- decoder rows

    def row_norms(self) -> Float[Tensor, " latent"]:
        """Σ_layer ‖W_dec,layer‖ of each latent: what a penalty weighs it by (Lindsey et al. 2024)."""
        return self.W_dec.unflatten(1, (self.shape.n_layers, -1)).norm(dim=2).sum(1)

    @torch.no_grad()
    def constrain_gradient(self, gradient: Float[Tensor, "latent d_out"]) -> None:
        """Remove from the decoder's gradient its component along each row (Bricken et al. 2023).

        Without it Adam's moments fill with a direction that ``constrain_weights`` takes back.
        """
        if self.shape.unit_norm:
            gradient.addcmul_(self.W_dec, (gradient * self.W_dec).sum(1, keepdim=True), value=-1)

    @torch.no_grad()
    def constrain_weights(self) -> None:
        """Bring decoder rows back to unit norm, so that a penalty cannot be dodged by long rows."""
        if self.shape.unit_norm:
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))


def squared_error(
    x: Float[Tensor, "token d_model"], x_hat: Float[Tensor, "token d_model"]
) -> Float[Tensor, ""]:
    """Mean over tokens of ‖x − x̂‖²."""
    return (x - x_hat).square().sum(1).mean()


def dead_error(
    centred: Float[Tensor, "token d_in"],
    residual: Float[Tensor, "token d_out"],
    encoder: Float[Tensor, "dead d_in"],
    bias: Float[Tensor, " dead"],
    decoder: Float[Tensor, "dead d_out"],
) -> Float[Tensor, ""]:
    """Mean over tokens of ‖e − ê‖², where the d_out/2 largest dead latents reconstruct the residual e.

    Negative pre-activations are not cut here: a latent that is below zero on every token would get no
    gradient and stay dead. Gao et al. 2024, arXiv 2406.04093, section 2.4.
    """
    k_aux = min(max(1, decoder.shape[1] // 2), len(decoder))
    latents = keep_largest(F.linear(centred, encoder, bias), k_aux)
    return squared_error(residual, latents @ decoder)


def keep_largest(values: Float[Tensor, "*batch latent"], k: int) -> Float[Tensor, "*batch latent"]:
    """``values`` with all but the ``k`` largest of the last dim set to zero."""
    top = values.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(values).scatter(-1, top.indices, top.values)


def registered() -> Mapping[str, type[Autoencoder]]:
    """The architectures registered so far, by name."""
    return dict(_REGISTRY)


def _unit_rows(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return F.normalize(torch.randn(shape, generator=generator), dim=1)
