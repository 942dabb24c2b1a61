"""The order in which training tokens are served: every one exactly once an epoch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from prisma_steps.seeding import torch_generator


@dataclass(frozen=True)
class Batches:
    """Where batches begin and end, a pure function of the optimiser step, so that a run can go on from any.

    An epoch is cut into equal batches, up to one token, instead of full ones and a small, noisy rest.

    Attributes:
        n_stored: tokens of an epoch.
        n_served: tokens to serve in all; a last epoch may be incomplete.
        batch_size: the most tokens of a batch.
    """

    n_stored: int
    n_served: int
    batch_size: int

    @property
    def n_batches(self) -> int:
        """Batches in all."""
        epochs, rest = divmod(self.n_served, self.n_stored)
        return epochs * self._batches(self.n_stored) + self._batches(rest)

    def tokens_seen(self, n_batches: int) -> int:
        """Tokens served in the first ``n_batches`` batches."""
        if n_batches == self.n_batches:
            return self.n_served
        epoch, start, _ = self.place(n_batches)
        return epoch * self.n_stored + start

    def place(self, index: int) -> tuple[int, int, int]:
        """Epoch of batch ``index``, counted from 0 over all epochs, and where it starts and stops in it."""
        epoch, position = divmod(index, self._batches(self.n_stored))
        size = min(self.n_stored, self.n_served - epoch * self.n_stored)
        batches = self._batches(size)
        return epoch, position * size // batches, (position + 1) * size // batches

    def _batches(self, n_tokens: int) -> int:
        return -(-n_tokens // self.batch_size)


@dataclass(frozen=True)
class Group:
    """Tokens that are held in memory and shuffled together.

    Attributes:
        sections: which sections of the images they are from, ascending.
        start: tokens of the epoch that are served before them.
        stop: ``start`` and how many they are.
    """

    sections: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class GroupOrder:
    """What is shuffled with what, as a pure function of the epoch.

    The images are cut into sections, which are shuffled and taken in groups of equal size, up to one section;
    within a group, the tokens are shuffled. Where all tokens fit in the buffer, all are one group.

    Attributes:
        n_images: images stored.
        tokens_per_image: chosen tokens of each.
        section_images: images of a section; the last may have less.
        buffer_tokens: about how many tokens make a group: at most one section more.
        seed: of the shuffles; every epoch has its own.
    """

    n_images: int
    tokens_per_image: int
    section_images: int
    buffer_tokens: int
    seed: int

    @property
    def n_sections(self) -> int:
        """Sections that the images are cut into."""
        return -(-self.n_images // self.section_images)

    @property
    def n_groups(self) -> int:
        """Groups of an epoch."""
        return min(self.n_sections, -(-self.n_images * self.tokens_per_image // self.buffer_tokens))

    @property
    def largest(self) -> int:
        """The most tokens that a group can have."""
        images = -(-self.n_sections // self.n_groups) * self.section_images
        return min(images, self.n_images) * self.tokens_per_image

    def section(self, index: int) -> slice:
        """The images of a section."""
        start = index * self.section_images
        return slice(start, min(start + self.section_images, self.n_images))

    def groups(self, epoch: int) -> tuple[Group, ...]:
        """The groups of ``epoch``, in the order they are served in."""
        return _groups(self, epoch)

    def rows(self, epoch: int, index: int) -> Int[Tensor, " token"]:
        """The order of the tokens of group ``index``; 0 is the first token of its first section."""
        group = self.groups(epoch)[index]
        generator = torch_generator(self.seed, f"sae/order/{epoch}/{index}")
        return torch.randperm(group.stop - group.start, generator=generator)


@lru_cache(maxsize=4)
def _groups(order: GroupOrder, epoch: int) -> tuple[Group, ...]:
    generator = torch_generator(order.seed, f"sae/sections/{epoch}")
    shuffled = torch.randperm(order.n_sections, generator=generator).tolist()
    groups, stop = [], 0
    for index in range(order.n_groups):
        begin, end = (at * order.n_sections // order.n_groups for at in (index, index + 1))
        sections = tuple(sorted(shuffled[begin:end]))
        images = sum(where.stop - where.start for where in map(order.section, sections))
        start, stop = stop, stop + images * order.tokens_per_image
        groups.append(Group(sections, start, stop))
    return tuple(groups)
