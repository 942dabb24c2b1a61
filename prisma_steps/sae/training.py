"""Training of a sparse autoencoder on a table of activations, one optimiser step at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from prisma_steps.sae.autoencoder import Autoencoder, Objective
from prisma_steps.sae.initialisation import mean_token
from prisma_steps.sae.order import TokenOrder
from prisma_steps.step import StepError

HISTORY = ("loss", "sparsity_loss", "fvu", "l0", "dead_latents", "learning_rate")

_RECORDS = 100
_GRADIENT_CLIP = 1.0
#: An FVU this many times that of the first step (or of the mean, if that is larger) is not coming back.
_DIVERGED = 100.0


class TrainingDiverged(StepError):
    """The loss is no longer a number, or grows without bound."""


@dataclass(frozen=True)
class Recipe:
    """How to train, whatever the architecture.

    Attributes:
        n_tokens: tokens to train on in all; more than are stored means several epochs.
        batch_size: the most tokens of an optimiser step.
        learning_rate: of Adam, at its highest.
        learning_rate_warmup: first share of the steps, over which it rises linearly.
        learning_rate_decay: last share of the steps, over which it falls linearly towards 0.
        sparsity_warmup: first share of the steps, over which the sparsity coefficient rises linearly.
        dead_after: tokens without firing after which a latent counts as dead.
        seed: of the order of the tokens.
    """

    n_tokens: int
    batch_size: int
    learning_rate: float
    learning_rate_warmup: float
    learning_rate_decay: float
    sparsity_warmup: float
    dead_after: int
    seed: int


class Trainer:
    """An autoencoder in training. ``advance`` until ``steps_done`` is ``n_steps``."""

    def __init__(
        self, autoencoder: Autoencoder, tokens: Float[Tensor, "token d_model"], recipe: Recipe
    ) -> None:
        """Train an initialised ``autoencoder``, on its device, on ``tokens`` of the model's own space."""
        self.autoencoder = autoencoder
        self.tokens = tokens
        self.recipe = recipe
        self.order = TokenOrder(len(tokens), recipe.n_tokens, recipe.batch_size, recipe.seed)
        self.n_steps = self.order.n_batches
        self.steps_done = 0
        self.history: dict[str, list[float]] = {name: [] for name in ("step", "tokens_seen", *HISTORY)}
        self._device = autoencoder.W_dec.device
        self._optimiser = torch.optim.Adam(autoencoder.parameters(), lr=recipe.learning_rate, fused=True)
        self._silent_tokens = torch.zeros(len(autoencoder.b_enc), dtype=torch.int64, device=self._device)
        self._mean = mean_token(tokens).to(self._device) * autoencoder.norm_factor

    def advance(self) -> None:
        """Make one optimiser step.

        Raises:
            TrainingDiverged: naming the step and the likely cause.
        """
        x = self._batch(self.steps_done)
        learning_rate = self.recipe.learning_rate * self._learning_rate_scale()
        dead = self._silent_tokens >= self.recipe.dead_after
        objective = self.autoencoder.objective(x, self._sparsity_scale(), dead)
        self._update(objective.loss, learning_rate)
        self._silent_tokens.add_(len(x)).masked_fill_(objective.firings > 0, 0)
        self.steps_done += 1
        if self._is_recorded(self.steps_done):
            self._record(x, objective, learning_rate)

    def state(self) -> dict[str, Any]:
        """All that a later ``restore`` needs to go on bit for bit."""
        return {
            "steps_done": self.steps_done,
            "autoencoder": self.autoencoder.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "silent_tokens": self._silent_tokens,
            "history": self.history,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a ``state``."""
        self.steps_done = state["steps_done"]
        self.autoencoder.load_state_dict(state["autoencoder"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._silent_tokens.copy_(state["silent_tokens"])
        self.history = state["history"]

    def _batch(self, index: int) -> Float[Tensor, "token d_model"]:
        x = self.tokens[self.order.batch(index)].to(self._device, torch.float32)
        return x * self.autoencoder.norm_factor

    def _update(self, loss: Float[Tensor, ""], learning_rate: float) -> None:
        self._optimiser.zero_grad()
        loss.backward()
        self.autoencoder.constrain_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.autoencoder.parameters(), _GRADIENT_CLIP)
        if not math.isfinite(norm.item()):
            raise TrainingDiverged(self._diverged(f"the loss is {loss.item()}, its gradient {norm.item()}"))
        self._optimiser.param_groups[0]["lr"] = learning_rate
        self._optimiser.step()
        self.autoencoder.constrain_weights()

    def _learning_rate_scale(self) -> float:
        """Linear warm-up, plateau, linear decay; never 0, so that no step is wasted."""
        done, total = self.steps_done, self.n_steps
        warmup = (done + 1) / max(1.0, self.recipe.learning_rate_warmup * total)
        decay = (total - done) / max(1.0, self.recipe.learning_rate_decay * total)
        return min(1.0, warmup, decay)

    def _sparsity_scale(self) -> float:
        return min(1.0, (self.steps_done + 1) / max(1.0, self.recipe.sparsity_warmup * self.n_steps))

    def _is_recorded(self, step: int) -> bool:
        return step in (1, self.n_steps) or step % max(1, self.n_steps // _RECORDS) == 0

    def _record(self, x: Float[Tensor, "token d_model"], objective: Objective, learning_rate: float) -> None:
        fvu = (objective.squared_error / (x - self._mean).square().sum(1).mean()).item()
        values = {
            "step": self.steps_done,
            "tokens_seen": self.order.tokens_seen(self.steps_done),
            "loss": objective.loss.item(),
            "sparsity_loss": objective.sparsity_loss.item(),
            "fvu": fvu,
            "l0": objective.firings.sum().item() / len(x),
            "dead_latents": (self._silent_tokens >= self.recipe.dead_after).sum().item(),
            "learning_rate": learning_rate,
        }
        for name, value in values.items():
            self.history[name].append(value)
        if fvu > _DIVERGED * max(1.0, self.history["fvu"][0]):
            raise TrainingDiverged(self._diverged(f"FVU is {fvu:.3g}"))

    def _diverged(self, symptom: str) -> str:
        where = f"{symptom} at optimiser step {self.steps_done} of {self.n_steps}"
        if not self.tokens.isfinite().all():
            return f"{where}: the activations themselves hold NaN or infinity"
        return (
            f"training diverged, {where}. Most likely learning_rate = {self.recipe.learning_rate:g} is too "
            "high: lower it, or raise learning_rate_warmup"
        )
