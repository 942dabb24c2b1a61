"""Adam for dictionaries, which keeps decoder rows at unit norm."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from prisma_steps.sae import adam_kernels
from prisma_steps.sae.autoencoder import Autoencoder
from prisma_steps.threads import array, in_parallel

#: The largest norm of all gradients together; larger ones are scaled down to it.
GRADIENT_CLIP = 1.0

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
#: As torch.nn.utils.clip_grad_norm_ adds to the norm before it divides.
_CLIP_EPSILON = 1e-6


class DictionaryAdam(ABC):
    """Adam (Kingma & Ba 2015, arXiv 1412.6980) with clipped gradients and decoder rows of unit norm.

    The component of the decoder's gradient along each row is taken off before, and rows are brought back to
    unit norm after, of dictionaries that want it (``Shape.unit_norm``).
    """

    @abstractmethod
    def update(self, gradients: Mapping[str, Tensor], learning_rate: float) -> float:
        """Make one step, and return the norm of all gradients before they were clipped.

        A norm that is no number is returned, not raised; the weights are then lost.

        Args:
            gradients: of each parameter by name, in float32 or bfloat16. They may be written over.
            learning_rate: of this step.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that a later ``restore`` needs to go on bit for bit; copies."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a ``state``."""

    @abstractmethod
    def reset(self, latents: Int[Tensor, " which"]) -> None:
        """Forget the past gradients of latents that start anew."""


def dictionary_adam(autoencoder: Autoencoder, copies: Mapping[str, Tensor] | None = None) -> DictionaryAdam:
    """Adam for an autoencoder where its weights are.

    Args:
        autoencoder: whose parameters are updated in place.
        copies: rounded copies of W_enc and W_dec, a latent a row, that are to follow; only on a CPU.
    """
    if autoencoder.W_dec.device.type == "cpu":
        return CompiledAdam(autoencoder, copies or {})
    return TorchAdam(autoencoder)


class CompiledAdam(DictionaryAdam):
    """On a CPU: gradients are read twice and weights are written once, a row at a time."""

    def __init__(self, autoencoder: Autoencoder, copies: Mapping[str, Tensor]) -> None:
        """Nothing seen yet."""
        self._copies = copies
        parameters = autoencoder.named_parameters()
        self._weights = {name: _rows(name, weight.detach()) for name, weight in parameters}
        self._by_latent = ("W_enc", "W_dec", *autoencoder.biases)
        self._constrained = {"W_dec"} if autoencoder.shape.unit_norm else set()
        self._steps = 0
        self._means = {name: torch.zeros_like(weight) for name, weight in self._weights.items()}
        self._squares = {name: torch.zeros_like(weight) for name, weight in self._weights.items()}
        self._along = {name: weight.new_empty(len(weight)) for name, weight in self._weights.items()}

    def update(self, gradients: Mapping[str, Tensor], learning_rate: float) -> float:
        """See ``DictionaryAdam.update``."""
        rows = {name: _rows(name, gradients[name]) for name in self._weights}
        norm = math.sqrt(sum(self._squared_norm(name, gradient) for name, gradient in rows.items()))
        scale = min(1.0, GRADIENT_CLIP / (norm + _CLIP_EPSILON))
        self._steps += 1
        for name, gradient in rows.items():
            self._step(name, gradient, scale, learning_rate)
        return norm

    def state(self) -> dict[str, Any]:
        """See ``DictionaryAdam.state``."""
        means, squares = (
            {name: moment.clone() for name, moment in moments.items()}
            for moments in (self._means, self._squares)
        )
        return {"steps": self._steps, "means": means, "squares": squares}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See ``DictionaryAdam.restore``."""
        self._steps = state["steps"]
        for name in self._weights:
            self._means[name].copy_(state["means"][name])
            self._squares[name].copy_(state["squares"][name])

    def reset(self, latents: Int[Tensor, " which"]) -> None:
        """See ``DictionaryAdam.reset``."""
        for moments in (self._means, self._squares):
            for name in self._by_latent:
                _latents_first(moments[name])[latents] = 0

    def _squared_norm(self, name: str, gradient: Tensor) -> float:
        weight, squares = self._weights[name], torch.empty(len(gradient))
        constrained = name in self._constrained
        in_parallel(
            adam_kernels.gradient_norms,
            len(weight),
            *(gradient, weight, constrained, self._along[name], squares),
            least=16,
        )
        return float(array(squares).sum(dtype=np.float64))

    def _step(self, name: str, gradient: Tensor, scale: float, learning_rate: float) -> None:
        biases = [1 - beta**self._steps for beta in _BETAS]
        weight = self._weights[name]
        in_parallel(
            adam_kernels.adam,
            len(weight),
            *(weight, gradient, self._along[name], name in self._constrained),
            *(self._means[name], self._squares[name], self._copies.get(name, weight[:0])),
            np.float32(scale),
            tuple(np.float32(1 - beta) for beta in _BETAS),
            *(np.float32(learning_rate / biases[0]), np.float32(math.sqrt(biases[1])), np.float32(_EPSILON)),
            least=16,
        )


class TorchAdam(DictionaryAdam):
    """On a GPU: the same by torch's own operations."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        """Nothing seen yet."""
        self._autoencoder = autoencoder
        self._parameters = dict(autoencoder.named_parameters())
        self._adam = torch.optim.Adam(autoencoder.parameters(), betas=_BETAS, eps=_EPSILON, fused=True)

    def update(self, gradients: Mapping[str, Tensor], learning_rate: float) -> float:
        """See ``DictionaryAdam.update``."""
        for name, parameter in self._parameters.items():
            # In the layout of the parameter: torch's fused kernel goes through the memory of both in step.
            parameter.grad = torch.empty_like(parameter).copy_(gradients[name])
        decoder = self._autoencoder.W_dec.grad
        assert decoder is not None
        self._autoencoder.constrain_gradient(decoder)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), GRADIENT_CLIP)
        self._adam.param_groups[0]["lr"] = learning_rate
        self._adam.step()
        self._autoencoder.constrain_weights()
        return norm.item()

    def state(self) -> dict[str, Any]:
        """See ``DictionaryAdam.state``."""
        moments = {
            name: {key: value.clone() for key, value in self._adam.state[parameter].items()}
            for name, parameter in self._parameters.items()
        }
        return {"moments": moments}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See ``DictionaryAdam.restore``."""
        for name, parameter in self._parameters.items():
            moments = state["moments"][name]
            copies = {key: moment.clone() for key, moment in moments.items()}
            self._adam.state[parameter] = copies

    def reset(self, latents: Int[Tensor, " which"]) -> None:
        """See ``DictionaryAdam.reset``."""
        for name in ("W_enc", "W_dec", *self._autoencoder.biases):
            moments = self._adam.state[self._parameters[name]]
            for key in moments.keys() - {"step"}:
                _latents_first(_rows(name, moments[key]))[latents] = 0


def _rows(name: str, tensor: Tensor) -> Tensor:
    """A parameter, or what belongs to one, as rows in one piece each; of W_enc a latent a row, as it lies."""
    if tensor.ndim == 1:
        return tensor.reshape(1, -1)
    return (tensor.T if name == "W_enc" else tensor).contiguous()


def _latents_first(rows: Tensor) -> Tensor:
    """Rows of a weight, or the numbers of a bias."""
    return rows[0] if len(rows) == 1 else rows
