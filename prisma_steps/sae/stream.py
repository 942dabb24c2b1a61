"""Training tokens from storage: a thread reads the next group while the present one is served."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Int
from torch import Tensor

from prisma_steps.sae.order import Batches, GroupOrder
from prisma_steps.sae.stored import StoredTokens, Tables


@dataclass
class _Buffer:
    """Room for a group, and the sections that lie in it now."""

    tables: Tables
    sections: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Loaded:
    """A group in memory. Its ``place`` is counted from 0 over all epochs."""

    place: int
    tables: Tables
    rows: Int[Tensor, " token"]


class TokenStream:
    """Batches of stored tokens, shuffled, as a pure function of their index; see ``GroupOrder``.

    At most two groups are in memory: one is served while the next is read by a thread. Batches are made to be
    asked for one after the other, from any on. To be closed, or used as a context manager.
    """

    def __init__(
        self, stored: StoredTokens, *, n_served: int, batch_size: int, buffer_tokens: int, seed: int
    ) -> None:
        """Serve ``stored``.

        Args:
            stored: the tokens of an epoch.
            n_served: tokens to serve in all; a last epoch may be incomplete.
            batch_size: the most tokens of a batch.
            buffer_tokens: about how many tokens are in memory and shuffled together; twice as many where they
                are not all.
            seed: of the order.
        """
        self._stored = stored
        self._batches = Batches(len(stored), n_served, batch_size)
        self._order = GroupOrder(
            stored.n_images, stored.tokens_per_image, stored.section_images, buffer_tokens, seed
        )
        # Consecutive places take turns. A single group stays where it is, and is read once for all epochs.
        self._buffers: list[_Buffer | None] = [None] * min(2, self._order.n_groups)
        self._served: _Loaded | None = None
        self._next: tuple[int, Future[_Loaded]] | None = None
        self._closing = threading.Event()
        self._reader = ThreadPoolExecutor(1, "tokens")

    def __enter__(self) -> Self:
        """The stream itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Let the reading thread end, after the section that it is reading."""
        self._closing.set()
        self._reader.shutdown(cancel_futures=True)

    @property
    def n_batches(self) -> int:
        """Batches in all."""
        return self._batches.n_batches

    def tokens_seen(self, n_batches: int) -> int:
        """Tokens served in the first ``n_batches`` batches."""
        return self._batches.tokens_seen(n_batches)

    def batch(self, index: int) -> Tables:
        """The tokens of batch ``index``, counted from 0 over all epochs, in the precision they are stored in.

        Returns:
            For each variable a tensor [token, d_model], or [token, layer, d_model] where it has layers, of
            its own memory (pinned where there is a GPU), the rows of all of the same tokens.

        Raises:
            StepError: when activations cannot be read.
        """
        epoch, start, stop = self._batches.place(index)
        batch = self._stored.room(stop - start, pinned=torch.cuda.is_available())
        for number, group in enumerate(self._order.groups(epoch)):
            first, last = max(start, group.start), min(stop, group.stop)
            if first >= last:
                continue
            loaded = self._load(epoch * self._order.n_groups + number)
            rows = loaded.rows[first - group.start : last - group.start]
            for table, taken in zip(loaded.tables, batch, strict=True):
                torch.index_select(table, 0, rows, out=taken[first - start : last - start])
            self._read_ahead(loaded.place + 1)
        return batch

    def sample(self, n_tokens: int) -> Tables:
        """Tokens that stand for all of them: the first that are served, of one group, at most ``n_tokens``.

        All of them where they fit in the buffer and ``n_tokens`` are as many. They lie as they are stored.
        """
        loaded = self._load(0)
        rows = loaded.rows[:n_tokens].sort().values
        return tuple(table.index_select(0, rows) for table in loaded.tables)

    def _load(self, place: int) -> _Loaded:
        """The group at ``place``, which is waited for if it is not there yet."""
        if self._served is None or self._served.place != place:
            if self._next is None or self._next[0] != place:
                self._next = place, self._reader.submit(self._read, place)
            _, future = self._next
            self._served = self._next = None
            self._served = future.result()
        return self._served

    def _read_ahead(self, place: int) -> None:
        """Have the group at ``place`` read, if it will be served."""
        if place <= self._last_place and (self._next is None or self._next[0] != place):
            self._next = place, self._reader.submit(self._read, place)

    @property
    def _last_place(self) -> int:
        epoch, _, stop = self._batches.place(self.n_batches - 1)
        groups = self._order.groups(epoch)
        return epoch * len(groups) + sum(group.start < stop for group in groups) - 1

    def _read(self, place: int) -> _Loaded:
        """Read a group into the buffer whose turn it is, unless it lies there; by the thread alone."""
        epoch, number = divmod(place, self._order.n_groups)
        group = self._order.groups(epoch)[number]
        buffer = self._buffer(place)
        if buffer.sections != group.sections:
            buffer.sections = ()
            self._fill(buffer.tables, group.sections)
            buffer.sections = group.sections
        return _Loaded(place, buffer.tables, self._order.rows(epoch, number))

    def _buffer(self, place: int) -> _Buffer:
        turn = place % len(self._buffers)
        buffer = self._buffers[turn]
        if buffer is None:
            buffer = self._buffers[turn] = _Buffer(self._stored.room(self._order.largest))
        return buffer

    def _fill(self, tables: Tables, sections: tuple[int, ...]) -> None:
        start = 0
        for images in map(self._order.section, sections):
            if self._closing.is_set():
                raise CancelledError
            stop = start + (images.stop - images.start) * self._stored.tokens_per_image
            self._stored.read(images, tuple(table[start:stop] for table in tables))
            start = stop
