"""The order in which training tokens are served: every one exactly once an epoch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from prisma_steps.seeding import torch_generator


@dataclass(frozen=True)
class TokenOrder:
    """Batches of token indices as a pure function of the optimiser step, so that a run can go on from any.

    An epoch is cut into equal batches, up to one token, instead of full ones and a small, noisy rest.

    Attributes:
        n_stored: tokens in the table.
        n_served: tokens to serve in all; a last epoch may be incomplete.
        batch_size: the most tokens of a batch.
        seed: of the shuffles; every epoch has its own.
    """

    n_stored: int
    n_served: int
    batch_size: int
    seed: int

    @property
    def n_batches(self) -> int:
        """Batches in all."""
        epochs, rest = divmod(self.n_served, self.n_stored)
        return epochs * self._batches(self.n_stored) + self._batches(rest)

    def batch(self, index: int) -> Int[Tensor, " token"]:
        """Indices of the tokens of batch ``index``, counted from 0 over all epochs."""
        epoch, start, stop = self._place(index)
        return _shuffle(self.n_stored, self.seed, epoch)[start:stop]

    def tokens_seen(self, n_batches: int) -> int:
        """Tokens served in the first ``n_batches`` batches."""
        if n_batches == self.n_batches:
            return self.n_served
        epoch, start, _ = self._place(n_batches)
        return epoch * self.n_stored + start

    def _place(self, index: int) -> tuple[int, int, int]:
        """Epoch of a batch, and where it starts and stops in it."""
        epoch, position = divmod(index, self._batches(self.n_stored))
        size = min(self.n_stored, self.n_served - epoch * self.n_stored)
        batches = self._batches(size)
        return epoch, position * size // batches, (position + 1) * size // batches

    def _batches(self, n_tokens: int) -> int:
        return -(-n_tokens // self.batch_size)


@lru_cache(maxsize=1)
def _shuffle(n_tokens: int, seed: int, epoch: int) -> Int[Tensor, " token"]:
    return torch.randperm(n_tokens, generator=torch_generator(seed, f"sae/order/{epoch}"))
