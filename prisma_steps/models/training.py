"""Training of a ``ToyViT`` as a classifier: AdamW, a schedule, early stopping, resumable at any step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, cos, inf, isfinite, pi, prod
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from prisma_steps.models.toy_vit import ToyViT
from prisma_steps.seeding import torch_generator

#: Frames of the test set that go through the model at once; a still image is one.
TEST_FRAMES = 512


class DivergedError(ValueError):
    """The training loss, or that of the validation, is no longer a finite number."""


@dataclass(frozen=True)
class Settings:
    """How a classifier is trained.

    Attributes:
        epochs: passes over the training images.
        batch_size: images in an optimiser step; the last of an epoch may have fewer.
        learning_rate: the highest, reached at the end of the warm-up.
        weight_decay: of matrices; biases, norms, the CLS token and the positions are not decayed.
        warmup: optimiser steps over which the learning rate grows linearly.
        schedule: how it goes on: half a cosine to 0, falling by steps, or constant.
        step_size: optimiser steps from one fall to the next, for the schedule ``step``.
        gamma: factor of a fall.
        gradient_clip: largest norm of the gradient of all parameters together.
        compute_dtype: of the products in a training step (bfloat16 by autocast). Weights, the residual
            stream, the optimiser and the evaluation are float32 either way.
        evaluations: how often in an epoch the history gets an entry.
        patience: entries of the history without a lower validation loss after which training stops; None
            trains to the end.
        seed: of the order of the images.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup: int
    gradient_clip: float
    compute_dtype: Literal["float32", "bfloat16"]
    evaluations: int
    seed: int
    schedule: Literal["cosine", "step", "constant"]
    step_size: int
    gamma: float
    patience: int | None


@dataclass(frozen=True)
class Classified:
    """Images, or clips, with their classes, as they are kept in memory."""

    pixels: UInt8[Tensor, "image *frame channel row column"]
    labels: Int[Tensor, " image"]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def batch(self, where: Tensor, device: str) -> tuple[Tensor, Tensor]:
        """Pixels in [0, 1], float32, and labels of some images."""
        return self.pixels[where].to(device).float() / 255, self.labels[where].to(device)


#: What is noted of weights that are kept.
KEPT = ("training_step", "test_loss", "test_accuracy")

HISTORY = ("step", "epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate")


@dataclass
class Progress:
    """All that training goes on from, besides the data and the settings.

    ``loss`` and ``correct`` are sums over the ``seen`` images since the last entry of the history; ``kept``
    tells of the weights that ``Trainer.note_kept`` was told of; ``lowest`` is the validation loss of the best
    weights so far, and ``waited`` the entries of the history since.
    """

    step: int = 0
    loss: float = 0.0
    correct: int = 0
    seen: int = 0
    history: dict[str, list[float | int]] = field(default_factory=lambda: {name: [] for name in HISTORY})
    kept: dict[str, list[float | int]] = field(default_factory=lambda: {name: [] for name in KEPT})
    lowest: float = inf
    waited: int = 0


def learning_rate(step: int, total: int, settings: Settings) -> float:
    """The learning rate of optimiser step ``step`` (from 0): linear warm-up, then the schedule.

    The cosine reaches 0 after ``total`` steps; ``step`` is StepLR of PyTorch, counted from the end of the
    warm-up, as in ViT-Prisma.
    """
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    after = step - settings.warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    if settings.schedule == "step":
        return settings.learning_rate * settings.gamma ** (after // settings.step_size)
    return settings.learning_rate * (1 + cos(pi * after / max(total - settings.warmup, 1))) / 2


class Trainer:
    """One training run, which can stop after any optimiser step and be taken up again.

    The order of the images of an epoch depends on the seed and the number of the epoch alone, so the model,
    the best weights so far, the optimiser and ``Progress`` are the whole state.
    """

    def __init__(
        self,
        model: ToyViT,
        train: Classified,
        test: Classified,
        settings: Settings,
        device: str,
        validation: Classified | None = None,
    ) -> None:
        """Make ready to train ``model`` in place. A patience needs images for the validation."""
        self.model = model
        nn.Module.to(model, device)  # transformers decorates its own .to so that types are lost
        self.train, self.test, self.settings, self.device = train, test, settings, device
        self.optimizer = _optimizer(model, settings)
        self.validation = validation
        self.best: dict[str, Tensor] | None = None
        self.progress = Progress()
        if validation is not None:
            self.progress.history["validation_loss"] = []
        self.steps_per_epoch = ceil(len(train) / settings.batch_size)
        self.total = self.steps_per_epoch * settings.epochs
        self._order: tuple[int, Tensor] | None = None

    def state(self) -> dict[str, Any]:
        """The state after the last whole step, for ``restore``."""
        return {
            "model": self.model.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "progress": vars(self.progress),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.model.load_state_dict(state["model"])
        self.best = state["best"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])

    def run(self, after_step: Callable[[Trainer, float], None]) -> None:
        """Train to the end, or until patience is lost. Leaves the weights of the lowest validation loss.

        Without a validation it leaves the last ones. ``after_step`` is called with the batch's loss once a
        step is complete.

        Raises:
            DivergedError: naming the optimiser step whose loss is not finite.
        """
        self.model.train()
        while self.progress.step < self.total and not self.has_stopped:
            loss = self._step()
            if self._is_due():
                self._record()
            after_step(self, loss)
        if self.best is not None:
            self.model.load_state_dict(self.best)
        self.model.eval()

    @property
    def has_stopped(self) -> bool:
        """Whether the validation loss has not fallen for so long that patience is lost."""
        return self.settings.patience is not None and self.progress.waited >= self.settings.patience

    def note_kept(self) -> None:
        """Note that the weights as they are now are kept, and what they reach on the test images."""
        entry = (self.progress.step, *evaluate(self.model, self.test, self.device))
        for name, value in zip(KEPT, entry, strict=True):
            self.progress.kept[name].append(value)

    def _step(self) -> float:
        number = self.progress.step
        rate = learning_rate(number, self.total, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        pixels, labels = self.train.batch(self._images(number), self.device)
        bfloat16 = self.settings.compute_dtype == "bfloat16"
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=bfloat16):
            logits = self.model(pixels).logits.float()
        loss = F.cross_entropy(logits, labels)
        self._update(loss)
        value = loss.item()
        if not isfinite(value):
            raise DivergedError(f"the training loss became {value} at optimiser step {number + 1}")
        self._count(value, logits, labels)
        return value

    def _update(self, loss: Float[Tensor, ""]) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip)
        self.optimizer.step()

    def _count(self, loss: float, logits: Tensor, labels: Tensor) -> None:
        progress = self.progress
        progress.step += 1
        progress.seen += len(labels)
        progress.loss += loss * len(labels)
        progress.correct += int((logits.argmax(-1) == labels).sum())

    def _images(self, step: int) -> Int[Tensor, " image"]:
        """Which training images make up the batch of an optimiser step."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            generator = torch_generator(self.settings.seed, f"image order of epoch {epoch}")
            self._order = epoch, torch.randperm(len(self.train), generator=generator)
        size = self.settings.batch_size
        return self._order[1][batch * size : (batch + 1) * size]

    def _is_due(self) -> bool:
        """Whether the history gets an entry: equally often in every epoch, and at its end."""
        done, parts = self.progress.step, self.settings.evaluations
        return done * parts // self.steps_per_epoch > (done - 1) * parts // self.steps_per_epoch

    def _record(self) -> None:
        progress = self.progress
        test_loss, test_accuracy = evaluate(self.model, self.test, self.device)
        entry = {
            "step": progress.step,
            "epoch": progress.step / self.steps_per_epoch,
            "train_loss": progress.loss / progress.seen,
            "train_accuracy": progress.correct / progress.seen,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }
        if self.validation is not None:
            entry["validation_loss"] = self._validate(self.validation)
        for name, value in entry.items():
            progress.history[name].append(value)
        progress.loss, progress.correct, progress.seen = 0.0, 0, 0

    def _validate(self, images: Classified) -> float:
        """The validation loss; where it is the lowest so far, the weights are kept."""
        progress = self.progress
        loss, _ = evaluate(self.model, images, self.device)
        if not isfinite(loss):
            raise DivergedError(f"the validation loss became {loss} at optimiser step {progress.step}")
        progress.waited += 1
        if loss < progress.lowest:
            progress.lowest, progress.waited = loss, 0
            self.best = {name: weight.clone() for name, weight in self.model.state_dict().items()}
        return loss


@torch.no_grad()
def evaluate(model: ToyViT, images: Classified, device: str) -> tuple[float, float]:
    """Mean cross-entropy in nat, and the share of the images whose class has the highest logit."""
    loss, correct = 0.0, 0
    frames = prod(images.pixels.shape[1:-3])
    for where in torch.arange(len(images)).split(max(TEST_FRAMES // frames, 1)):
        pixels, labels = images.batch(where, device)
        logits = model(pixels).logits
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(-1) == labels).sum())
    return loss / len(images), correct / len(images)


def _optimizer(model: ToyViT, settings: Settings) -> torch.optim.Optimizer:
    decayed = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    is_decayed = {id(parameter) for parameter in decayed}
    others = [parameter for parameter in model.parameters() if id(parameter) not in is_decayed]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
