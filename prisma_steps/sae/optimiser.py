"""Adam with the constraints of a dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prisma_steps.sae.autoencoder import Autoencoder

_GRADIENT_CLIP = 1.0


class DictionaryAdam:
    def __init__(self, autoencoder: Autoencoder) -> None:
        self._autoencoder = autoencoder
        self._parameters = dict(autoencoder.named_parameters())
        self._adam = torch.optim.Adam(self._parameters.values(), fused=True)

    def update(self, gradients: Mapping[str, Tensor], learning_rate: float) -> float:
        for name, parameter in self._parameters.items():
            parameter.grad = gradients[name].to(parameter.dtype)
        self._autoencoder.constrain_gradient(self._parameters["W_dec"].grad)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), _GRADIENT_CLIP).item()
        self._adam.param_groups[0]["lr"] = learning_rate
        self._adam.step()
        self._adam.zero_grad()
        self._autoencoder.constrain_weights()
        return norm

    def reset(self, latents: Tensor) -> None:
        dims = {"W_enc": 1, "W_dec": 0, **dict.fromkeys(self._autoencoder.biases, 0)}
        for name, dim in dims.items():
            state = self._adam.state[self._parameters[name]]
            for moment in ("exp_avg", "exp_avg_sq"):
                if moment in state:
                    state[moment].index_fill_(dim, latents, 0.0)

    def state(self) -> dict[str, Any]:
        return self._adam.state_dict()

    def restore(self, state: Mapping[str, Any]) -> None:
        self._adam.load_state_dict(dict(state))
