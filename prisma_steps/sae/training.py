"""Training of a sparse dictionary, one optimiser step at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prisma_steps.precision import ComputeDtype
from prisma_steps.sae.autoencoder import Autoencoder, Objective
from prisma_steps.sae.buffers import Buffers
from prisma_steps.sae.fused import fused_gradients
from prisma_steps.sae.gradients import AutogradGradients, Gradients
from prisma_steps.sae.optimiser import dictionary_adam
from prisma_steps.sae.resampling import resample
from prisma_steps.seeding import torch_generator
from prisma_steps.step import StepError

HISTORY = ("loss", "sparsity_loss", "fvu", "l0", "dead_latents", "learning_rate")

_RECORDS = 100
#: An FVU this many times that of the first step (or of the mean, if that is larger) is not coming back.
_DIVERGED = 100.0
#: Dead latents are resampled after these shares of the steps, as in Bricken et al. 2023.
_RESAMPLED_AT = (1 / 8, 2 / 8, 3 / 8, 4 / 8)


class TrainingDiverged(StepError):
    """The loss is no longer a number, or grows without bound."""


@dataclass(frozen=True)
class Recipe:
    """How to train, whatever the architecture.

    Attributes:
        n_steps: optimiser steps in all.
        learning_rate: of Adam, at its highest.
        learning_rate_warmup: first share of the steps, over which it rises linearly.
        learning_rate_decay: last share of the steps, over which it falls linearly towards 0.
        sparsity_warmup: first share of the steps, over which the sparsity coefficient rises linearly.
        dead_after: tokens without firing after which a latent counts as dead.
        resamples: whether dead latents are resampled.
        compute_dtype: of the matrix products; weights, sums and moments are float32.
        seed: of resampling.
    """

    n_steps: int
    learning_rate: float
    learning_rate_warmup: float
    learning_rate_decay: float
    sparsity_warmup: float
    dead_after: int
    resamples: bool = False
    compute_dtype: ComputeDtype = "float32"
    seed: int = 0


class Trainer:
    """A dictionary in training: ``advance`` with a batch until ``steps_done`` is the recipe's ``n_steps``."""

    def __init__(
        self,
        autoencoder: Autoencoder,
        recipe: Recipe,
        mean: Float[Tensor, " d_out"],
        buffers: Buffers | None = None,
    ) -> None:
        """Train a dictionary on its device.

        Args:
            autoencoder: initialised.
            recipe: how to train.
            mean: of the normalised targets.
            buffers: shared by dictionaries that are trained in turns; its own if None.
        """
        self.autoencoder = autoencoder
        self.recipe = recipe
        self.steps_done = 0
        self.history: dict[str, list[float]] = {name: [] for name in ("step", "tokens_seen", *HISTORY)}
        device = autoencoder.W_dec.device
        self._mean = mean.to(device)
        fused = fused_gradients(autoencoder, recipe.compute_dtype, buffers)
        self._gradients: Gradients = fused or AutogradGradients(autoencoder, recipe.compute_dtype)
        self._optimiser = dictionary_adam(autoencoder, fused.copies if fused else None)
        self._tokens_seen = 0
        self._silent_tokens = torch.zeros(autoencoder.shape.n_latents, dtype=torch.int64, device=device)

    def advance(self, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"]) -> None:
        """Make one optimiser step.

        Args:
            x: inputs in the model's own space, on the dictionary's device, float32.
            y: their targets; ``x`` itself for what reconstructs its input.

        Raises:
            TrainingDiverged: naming the step and the likely cause.
        """
        placed = self.autoencoder.normalisation.place(x)
        target = self.autoencoder.normalisation.place_target(y, placed)
        dead = self._dead()
        objective, gradients = self._gradients(placed.x, target, self._sparsity_scale(), dead)
        learning_rate = self.recipe.learning_rate * self._learning_rate_scale()
        norm = self._optimiser.update(gradients, learning_rate)
        if not math.isfinite(norm):
            symptom = f"the loss is {objective.loss.item()}, its gradient {norm}"
            raise TrainingDiverged(self._diverged(symptom, x, y))
        self._silent_tokens.add_(len(x)).masked_fill_(objective.firings > 0, 0)
        self._tokens_seen += len(x)
        self.steps_done += 1
        if self._resamples_now():
            self._resample(placed.x, target)
        if self._is_recorded(self.steps_done):
            fvu = objective.squared_error / (target - self._mean).square().sum(1).mean()
            self._record(objective, fvu.item(), learning_rate, len(x))
            if self.history["fvu"][-1] > _DIVERGED * max(1.0, self.history["fvu"][0]):
                raise TrainingDiverged(self._diverged(f"FVU is {fvu.item():.3g}", x, y))

    def state(self) -> dict[str, Any]:
        """All that a later ``restore`` needs to go on bit for bit."""
        return {
            "steps_done": self.steps_done,
            "tokens_seen": self._tokens_seen,
            "autoencoder": self.autoencoder.state_dict(),
            "optimiser": self._optimiser.state(),
            "silent_tokens": self._silent_tokens,
            "history": self.history,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a ``state``."""
        self.steps_done = state["steps_done"]
        self._tokens_seen = state["tokens_seen"]
        self.autoencoder.load_state_dict(state["autoencoder"])
        self._optimiser.restore(state["optimiser"])
        self._silent_tokens.copy_(state["silent_tokens"])
        self.history = state["history"]

    def _dead(self) -> Bool[Tensor, " latent"]:
        return self._silent_tokens >= self.recipe.dead_after

    def _learning_rate_scale(self) -> float:
        """Linear warm-up, plateau, linear decay; never 0, so that no step is wasted."""
        done, total = self.steps_done, self.recipe.n_steps
        warmup = (done + 1) / max(1.0, self.recipe.learning_rate_warmup * total)
        decay = (total - done) / max(1.0, self.recipe.learning_rate_decay * total)
        return min(1.0, warmup, decay)

    def _sparsity_scale(self) -> float:
        return min(1.0, (self.steps_done + 1) / max(1.0, self.recipe.sparsity_warmup * self.recipe.n_steps))

    def _resamples_now(self) -> bool:
        steps = {round(share * self.recipe.n_steps) for share in _RESAMPLED_AT}
        return self.recipe.resamples and self.steps_done in steps

    def _resample(self, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"]) -> None:
        generator = torch_generator(self.recipe.seed, f"sae/resampling/{self.steps_done}")
        resampled = resample(self.autoencoder, x, y, self._dead(), generator)
        self._optimiser.reset(resampled)
        self._silent_tokens[resampled] = 0

    def _is_recorded(self, step: int) -> bool:
        total = self.recipe.n_steps
        return step in (1, total) or step % max(1, total // _RECORDS) == 0

    def _record(self, objective: Objective, fvu: float, learning_rate: float, n_tokens: int) -> None:
        values = {
            "step": self.steps_done,
            "tokens_seen": self._tokens_seen,
            "loss": objective.loss.item(),
            "sparsity_loss": objective.sparsity_loss.item(),
            "fvu": fvu,
            "l0": objective.firings.sum().item() / n_tokens,
            "dead_latents": self._dead().sum().item(),
            "learning_rate": learning_rate,
        }
        for name, value in values.items():
            self.history[name].append(value)

    def _diverged(self, symptom: str, x: Tensor, y: Tensor) -> str:
        where = f"{symptom} at optimiser step {self.steps_done} of {self.recipe.n_steps}"
        if not (x.isfinite().all() and y.isfinite().all()):
            return f"{where}: the activations themselves hold NaN or infinity"
        return (
            f"training diverged, {where}. Most likely learning_rate = {self.recipe.learning_rate:g} is too "
            "high: lower it, or raise learning_rate_warmup"
        )
