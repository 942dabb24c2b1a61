"""Which latents of two dictionaries are the same: cosines of decoder rows, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

#: Cosines held at once.
_COSINES = 2**25

Rows = Float[Tensor, "latent d"]


class Nearest(NamedTuple):
    """The nearest decoder row of the other dictionary, of every latent.

    Attributes:
        cosine: to that row.
        latent: its number; the lowest where several are as near.
    """

    cosine: Float[np.ndarray, " latent"]
    latent: Int[np.ndarray, " latent"]


def directions(W_dec: Float[Tensor, "latent *d"]) -> Rows:
    """Decoder rows of norm 1; the layers of a crosscoder side by side; a row of zeros stays one."""
    return F.normalize(W_dec.flatten(1).float(), dim=1)


def nearest(first: Rows, second: Rows, itself: bool = False) -> tuple[Nearest, Nearest]:
    """The nearest row of the second for each of the first, and the other way round.

    Args:
        first: rows of norm 1.
        second: rows of norm 1.
        itself: both are one dictionary, and no row counts as near to itself.
    """
    of_first: list[tuple[Tensor, Tensor]] = []
    best = torch.full((len(second),), -torch.inf)
    which = torch.zeros(len(second), dtype=torch.int64)
    for start, cosine in cosine_blocks(first, second, itself):
        here, there = cosine.max(1)
        of_first.append((here, there))
        highest, row = cosine.max(0)
        better = highest > best
        best, which = torch.where(better, highest, best), torch.where(better, row + start, which)
    cosine, latent = (torch.cat(parts) for parts in zip(*of_first, strict=True))
    return Nearest(cosine.numpy(), latent.numpy()), Nearest(best.numpy(), which.numpy())


def matched_order(
    of_first: Nearest, of_second: Nearest
) -> tuple[Int[np.ndarray, " first"], Int[np.ndarray, " second"]]:
    """Numbers of the latents of both so that pairs stand at equal places, the closest first.

    Pairs are mutual nearest neighbours. What has no partner follows, by falling cosine.
    """
    rows = np.arange(len(of_first.latent))
    mutual = of_second.latent[of_first.latent] == rows
    paired = rows[mutual][np.argsort(-of_first.cosine[mutual], kind="stable")]
    partners = of_first.latent[paired]
    return _then_the_rest(paired, of_first.cosine), _then_the_rest(partners, of_second.cosine)


def _then_the_rest(begun: Int[np.ndarray, " some"], cosine: Float[np.ndarray, " latent"]) -> np.ndarray:
    falling = np.argsort(-cosine, kind="stable")
    return np.concatenate([begun, falling[~np.isin(falling, begun)]])


def chained_order(rows: Rows) -> Int[np.ndarray, " latent"]:
    """An order of one dictionary in which alike latents stand together.

    From the first latent on, each is followed by the most similar of those that are left.
    """
    left = torch.zeros(len(rows))
    order = [0]
    for _ in range(len(rows) - 1):
        left[order[-1]] = -torch.inf
        order.append(int((rows @ rows[order[-1]] + left).argmax()))
    return np.array(order)


def cosine_map(
    first: Rows, second: Rows, cells: int, itself: bool = False
) -> Float[np.ndarray, "first_cell second_cell"]:
    """The highest cosine in every cell of a map of at most ``cells`` × ``cells``, rows in the given order.

    Where both are one dictionary (``itself``), a row's cosine to itself does not count; NaN in a cell that
    holds no other.
    """
    high, wide = (-(-len(rows) // cells) for rows in (first, second))
    shape = (-(-len(first) // high), -(-len(second) // wide))
    found = torch.full(shape, -torch.inf)
    for start, cosine in cosine_blocks(first, second, itself, high):
        short = -len(cosine) % high, -cosine.shape[1] % wide
        padded = F.pad(cosine, (0, short[1], 0, short[0]), value=-torch.inf)
        at = start // high
        tiles = padded.unflatten(1, (-1, wide)).unflatten(0, (-1, high))
        found[at : at + len(tiles)] = tiles.amax((1, 3))
    return found.masked_fill(found == -torch.inf, torch.nan).numpy()


def cosine_blocks(
    first: Rows, second: Rows, itself: bool = False, multiple: int = 1
) -> Iterator[tuple[int, Float[Tensor, "some second"]]]:
    """Cosines of some rows of the first with all of the second, and the number of the first of these rows.

    Args:
        first: rows of norm 1.
        second: rows of norm 1.
        itself: both are one dictionary, and the cosine of a row to itself is −∞.
        multiple: of which the number of rows of a block is one, but for the last block.
    """
    size = max(1, _COSINES // len(second) // multiple) * multiple
    for start in range(0, len(first), size):
        cosine = first[start : start + size] @ second.T
        if itself:
            cosine.diagonal(start).fill_(-torch.inf)
        yield start, cosine
