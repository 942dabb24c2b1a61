"""How good a dictionary is: sums over batches of images, in float64, and what they amount to.

Every metric is a ratio of sums over the whole evaluation set, never a mean of batch means, so that the size
of a batch changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from prisma_steps.sae.similarity import cosine_blocks, directions

#: A latent that fires on a larger share of the tokens is dense.
DENSE = 0.1


@dataclass(frozen=True)
class ReconstructionSums:
    """Sums over tokens behind L0, MSE, FVU and cosine similarity; ``+`` joins two groups of tokens.

    Attributes:
        n_tokens: tokens in the group.
        active: latents that fire, summed.
        squared_error: ‖x − x̂‖², summed.
        cosine: cos(x, x̂) along d_model, summed.
        mean: x̄ of the group.
        scatter: ‖x − x̄‖², summed.
    """

    n_tokens: int
    active: int
    squared_error: float
    cosine: float
    mean: Float[Tensor, " d_model"]
    scatter: float

    @classmethod
    def of(
        cls,
        x: Float[Tensor, "token d_model"],
        x_hat: Float[Tensor, "token d_model"],
        latents: Float[Tensor, "token latent"],
    ) -> ReconstructionSums:
        """Sums of one batch of at least one token, ``x`` and ``x_hat`` in the model's own space."""
        active = torch.count_nonzero(latents > 0).item()
        x, x_hat = x.double(), x_hat.double()
        mean = x.mean(0)
        return cls(
            n_tokens=len(x),
            active=int(active),
            squared_error=(x - x_hat).square().sum().item(),
            cosine=F.cosine_similarity(x, x_hat, dim=1).sum().item(),
            mean=mean,
            scatter=(x - mean).square().sum().item(),
        )

    def __add__(self, other: ReconstructionSums) -> ReconstructionSums:
        """Sums of both groups; the scatter about the common mean by Chan, Golub and LeVeque 1979, eq. 2.1."""
        n_tokens = self.n_tokens + other.n_tokens
        apart = other.mean - self.mean
        between = apart.square().sum().item() * self.n_tokens * other.n_tokens / n_tokens
        return ReconstructionSums(
            n_tokens=n_tokens,
            active=self.active + other.active,
            squared_error=self.squared_error + other.squared_error,
            cosine=self.cosine + other.cosine,
            mean=self.mean + apart * (other.n_tokens / n_tokens),
            scatter=self.scatter + other.scatter + between,
        )

    def metrics(self) -> Mapping[str, float]:
        """The metrics of the group, by their names in ``schema.MEANINGS``.

        FVU is NaN when all tokens are equal: then there is no variance to explain.
        """
        fvu = self.squared_error / self.scatter if self.scatter > 0 else float("nan")
        return {
            "l0": self.active / self.n_tokens,
            "mse": self.squared_error / self.n_tokens,
            "fvu": fvu,
            "explained_variance": 1 - fvu,
            "cosine_similarity": self.cosine / self.n_tokens,
            "n_tokens": self.n_tokens,
        }


class LatentSums:
    """How often and how strongly each latent fires."""

    def __init__(self, n_latents: int) -> None:
        """Start with no images."""
        self._n_images = 0
        self._n_tokens = 0
        self._tokens = torch.zeros(n_latents, dtype=torch.int64)
        self._images = torch.zeros(n_latents, dtype=torch.int64)
        self._total = torch.zeros(n_latents, dtype=torch.float64)
        self._highest = torch.zeros(n_latents)

    def add(self, latents: Float[Tensor, "image token latent"]) -> None:
        """Add the latents of a batch of images."""
        fires = latents > 0
        self._n_images += latents.shape[0]
        self._n_tokens += latents.shape[0] * latents.shape[1]
        self._tokens += fires.flatten(0, 1).sum(0).cpu()
        self._images += fires.any(1).sum(0).cpu()
        self._total += latents.sum((0, 1), dtype=torch.float64).cpu()
        self._highest = self._highest.maximum(latents.amax((0, 1)).float().cpu())

    def per_token(self) -> Float[Tensor, " latent"]:
        """Share of tokens on which each latent fires."""
        return self._tokens.double() / self._n_tokens

    def per_image(self) -> Float[Tensor, " latent"]:
        """Share of images in which each latent fires on at least one token."""
        return self._images.double() / self._n_images

    def mean_activation(self) -> Float[Tensor, " latent"]:
        """Mean over the tokens on which a latent fires; NaN of a latent that never does."""
        return self._total / self._tokens

    def max_activation(self) -> Float[Tensor, " latent"]:
        """Highest activation; 0 of a latent that never fires."""
        return self._highest


def states(firing_frequency: Float[Tensor, " latent"]) -> list[str]:
    """Of each latent: ``dead`` (it never fired), ``dense`` (on more than 10 % of the tokens) or ``alive``."""
    return [
        "dead" if share == 0 else "dense" if share > DENSE else "alive" for share in firing_frequency.tolist()
    ]


def density(firing_frequency: Float[Tensor, " latent"]) -> Mapping[str, float]:
    """Shares of latents that fired at all, that never fired, and that are dense; the dense are alive too."""
    alive = (firing_frequency > 0).double().mean().item()
    return {
        "alive_latents": alive,
        "dead_share": 1 - alive,
        "dense_latents": (firing_frequency > DENSE).double().mean().item(),
    }


@dataclass(frozen=True)
class ClassificationSums:
    """Sums over images behind cross-entropy and top-1 of one kind of run; ``+`` joins two groups of images.

    Attributes:
        n_images: images in the group.
        ce: cross-entropy in nat, summed.
        correct: images whose class has the highest logit.
        ce_without_temperature: cross-entropy of a zero-shot head's cosines themselves, in nat, summed; None
            for other heads.
    """

    n_images: int
    ce: float
    correct: int
    ce_without_temperature: float | None = None

    @classmethod
    def of(
        cls,
        logits: Float[Tensor, "image class"],
        labels: Int[Tensor, " image"],
        cosines: Float[Tensor, "image class"] | None = None,
    ) -> ClassificationSums:
        """Sums of one batch of images.

        Args:
            logits: the model's answers.
            labels: the classes.
            cosines: the logits of a zero-shot head without temperature and bias.
        """
        return cls(
            n_images=len(labels),
            ce=summed_cross_entropy(logits, labels),
            correct=int((logits.argmax(1) == labels).sum()),
            ce_without_temperature=None if cosines is None else summed_cross_entropy(cosines, labels),
        )

    def __add__(self, other: ClassificationSums) -> ClassificationSums:
        """Sums of both groups."""
        mine, others = self.ce_without_temperature, other.ce_without_temperature
        return ClassificationSums(
            n_images=self.n_images + other.n_images,
            ce=self.ce + other.ce,
            correct=self.correct + other.correct,
            ce_without_temperature=None if mine is None or others is None else mine + others,
        )

    def metrics(self, run: str = "") -> Mapping[str, float]:
        """Mean cross-entropies in nat and the share of images classified right, named after a run."""
        after = f"_{run}" if run else ""
        found = {f"ce{after}": self.ce / self.n_images, f"top1{after}": self.correct / self.n_images}
        if self.ce_without_temperature is not None:
            found[f"ce{after}_without_temperature"] = self.ce_without_temperature / self.n_images
        return found


def summed_cross_entropy(logits: Float[Tensor, "image class"], labels: Int[Tensor, " image"]) -> float:
    """Cross-entropy in nat, summed over images in float64."""
    return F.cross_entropy(logits.double(), labels, reduction="sum").item()


def ce_recovered(ce: float, ce_reconstruction: float, ce_zero_ablation: float) -> float:
    """100 · (CE_zero − CE_rec) / (CE_zero − CE), in percent; above 100 the reconstruction lowers the loss.

    NaN when zero ablation leaves the cross-entropy as it is: then there is nothing to recover.
    """
    lost = ce_zero_ablation - ce
    return 100 * (ce_zero_ablation - ce_reconstruction) / lost if lost != 0 else float("nan")


def nearest_rows(
    W_dec: Float[Tensor, "latent d_model"],
) -> tuple[Int[Tensor, " latent"], Float[Tensor, " latent"]]:
    """Of each decoder row, the other row that points most nearly its way, and their cosine.

    Near 1, the dictionary repeats itself. Neighbours are found in float32, their cosines are of float64. A
    row that has no other has the neighbour −1 and the cosine NaN.
    """
    if len(W_dec) == 1:
        return torch.tensor([-1]), torch.tensor([torch.nan], dtype=torch.float64)
    rows = directions(W_dec)
    which = torch.cat([cosine.argmax(1) for _, cosine in cosine_blocks(rows, rows, itself=True)])
    return which, F.cosine_similarity(W_dec.double(), W_dec.double()[which], dim=1)
