"""What attention heads do: how far they look, how sharply, and at what; and rollout through the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prisma_steps.models.structure import Structure


@dataclass(frozen=True)
class Grid:
    """Where the tokens of a sequence lie.

    Attributes:
        kind: what every token is (``cls``, ``register``, ``distillation``, ``patch``).
        row, column, frame: of every patch on the grid; −1 for other tokens.
        patch_size: height and width of a patch in pixels.
    """

    kind: np.ndarray
    row: np.ndarray
    column: np.ndarray
    frame: np.ndarray
    patch_size: tuple[float, float]

    @property
    def is_patch(self) -> Bool[np.ndarray, " token"]:
        """Which tokens are patches."""
        return self.kind == "patch"

    @property
    def kinds(self) -> list[str]:
        """The kinds of tokens that there are, in the order of the sequence."""
        return list(dict.fromkeys(self.kind.tolist()))

    @property
    def n_frames(self) -> int:
        """Frames, or tubelets of a clip; 1 for a still image."""
        return int(self.frame.max()) + 1


def grid_of(vit: Structure) -> Grid:
    """Where the tokens of a model lie in its input."""
    tokens = vit.token_coords()
    kind, row, column = (tokens[name] for name in ("token_kind", "patch_row", "patch_col"))
    *_, height, width = vit.input_shape
    size = (height / (int(row.max()) + 1), width / (int(column.max()) + 1))
    return Grid(kind, row, column, tokens.get("patch_frame", np.where(kind == "patch", 0, -1)), size)


def distances(grid: Grid) -> Float[np.ndarray, "query_token key_token"]:
    """Distance of the centres of two patches in the image, in pixels; 0 where a token is no patch."""
    height, width = grid.patch_size
    down = _differences(grid.row) * height
    across = _differences(grid.column) * width
    return np.hypot(down, across) * _patch_pairs(grid)


def frame_distances(grid: Grid) -> Float[np.ndarray, "query_token key_token"]:
    """Tubelets between two patches of a clip; 0 where a token is no patch."""
    return abs(_differences(grid.frame)) * _patch_pairs(grid).astype(float)


def relations(grid: Grid) -> Mapping[str, Bool[np.ndarray, "query_token key_token"]]:
    """Which key a query patch attends to in each type of head; rows of queries that have none are empty.

    ``self``; ``previous_patch`` and ``next_patch`` of its frame, row by row as the sequence has them; ``row``
    and ``column``, its own included, in any frame; ``corner``, the four corners of the grid; ``cls``. In
    clips ``same_frame``, ``previous_frame`` and ``next_frame``, all patches of it.
    """
    pairs = _patch_pairs(grid)
    place = grid.row * (grid.column.max() + 1) + grid.column
    frames, ahead = _differences(grid.frame), _differences(place)
    edge = [np.isin(values, (0, values.max())) for values in (grid.row, grid.column)]
    found = {
        "self": np.eye(len(grid.kind), dtype=bool) & pairs,
        "previous_patch": (ahead == -1) & (frames == 0) & pairs,
        "next_patch": (ahead == 1) & (frames == 0) & pairs,
        "row": (_differences(grid.row) == 0) & pairs,
        "column": (_differences(grid.column) == 0) & pairs,
        "corner": (edge[0] & edge[1]) & pairs,
    }
    if "cls" in grid.kind:
        found["cls"] = grid.is_patch[:, None] & (grid.kind == "cls")
    if grid.n_frames > 1:
        steps = {"same_frame": 0, "previous_frame": -1, "next_frame": 1}
        found |= {name: (frames == step) & pairs for name, step in steps.items()}
    return found


def _differences(values: np.ndarray) -> np.ndarray:
    """Value of the key less that of the query: [query_token, key_token]."""
    return values[None, :] - values[:, None]


def _patch_pairs(grid: Grid) -> Bool[np.ndarray, "query_token key_token"]:
    return grid.is_patch[:, None] & grid.is_patch


@dataclass
class Description:
    """Sums over images, in float64, of what the heads of every layer do.

    Attributes:
        grid: where the tokens lie.
        n_layers: of the model.
        device: where patterns and sums are.
        n_images: that were added.
    """

    grid: Grid
    n_layers: int
    device: str = "cpu"
    n_images: int = 0
    _sums: dict[int, Float[Tensor, "head sum"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Lay out what patterns are multiplied by."""
        every = np.ones(len(self.grid.kind), bool)
        self._queries = {"all": every, **{kind: self.grid.kind == kind for kind in self.grid.kinds}}
        self._weights = self._pair_weights()
        stacked = np.concatenate(list(self._weights.values())).reshape(-1, len(every) ** 2)
        self._of_pairs = torch.from_numpy(stacked).to(self.device, torch.float64)
        means = np.stack([is_query / is_query.sum() for is_query in self._queries.values()])
        self._of_queries = torch.from_numpy(means).to(self.device, torch.float64)

    @property
    def query_kinds(self) -> list[str]:
        """``all``, and the kinds of tokens that there are."""
        return list(self._queries)

    def add(self, layer: int, pattern: Float[Tensor, "image head query_token key_token"]) -> None:
        """Add the patterns of some images in one layer; each image goes once into every layer."""
        p = pattern.detach().double()
        linear = p.sum(0).flatten(1) @ self._of_pairs.T
        entropy = -torch.xlogy(p, p).sum((0, -1)) @ self._of_queries.T
        sums = torch.cat([linear, entropy], dim=1)
        self._sums[layer] = self._sums[layer] + sums if layer in self._sums else sums
        self.n_images += len(pattern) if layer == 0 else 0

    def results(self) -> dict[str, Float[np.ndarray, "*what layer head"]]:
        """Means over images, by the names of the schema.

        ``attention_distance`` [layer, head]: of patches to patches, weighted by attention: Σ p·d / Σ p over
        pairs of patches and images (Dosovitskiy et al. 2020, arXiv 2010.11929, figure 7). In clips also
        ``attention_frame_distance``. ``attention_entropy`` [query_kind, layer, head]: −Σ p ln p, in nat, mean
        over queries. ``attention_mass`` [query_kind, key_kind, layer, head]: what a query gives to all tokens
        of a kind, mean over queries. ``head_score`` [head_type, layer, head]: what a patch gives to the keys
        of a relation, mean over the patches that have such keys.
        """
        sums = torch.stack([self._sums[layer] for layer in range(self.n_layers)]) / self.n_images
        return self._named(np.moveaxis(sums.cpu().numpy(), -1, 0))

    def uniform(self) -> dict[str, Float[np.ndarray, "*what"]]:
        """The same, without layer and head, of attention that is the same to all tokens."""
        n_tokens = len(self.grid.kind)
        linear = self._of_pairs.sum(1).cpu().numpy() / n_tokens
        return self._named(np.concatenate([linear, np.full(len(self._queries), np.log(n_tokens))]))

    def _named(self, sums: Float[np.ndarray, "sum *rest"]) -> dict[str, np.ndarray]:
        ends = np.cumsum([len(weights) for weights in self._weights.values()])
        *linear, entropy = np.split(sums, ends)
        found = dict(zip(self._weights, linear, strict=True)) | {"attention_entropy": entropy}
        mass = found.pop("patch_pairs")[0]
        for name in ("attention_distance", "attention_frame_distance"):
            if name in found:  # NaN of a head that gives patches nothing
                found[name] = np.divide(found[name][0], mass, out=np.full_like(mass, np.nan), where=mass > 0)
        shape = (len(self._queries), len(self.grid.kinds))
        found["attention_mass"] = found["attention_mass"].reshape(*shape, *sums.shape[1:])
        return found

    def _pair_weights(self) -> dict[str, Float[np.ndarray, "sum query_token key_token"]]:
        """Of every number that is linear in the pattern, what its pairs are multiplied by."""
        grid, related = self.grid, list(relations(self.grid).values())
        kinds = [grid.kind == kind for kind in grid.kinds]
        found = {"patch_pairs": _patch_pairs(grid)[None].astype(float)}
        found["attention_distance"] = distances(grid)[None]
        if grid.n_frames > 1:
            found["attention_frame_distance"] = frame_distances(grid)[None]
        masses = [
            is_query[:, None] * is_key / is_query.sum()
            for is_query in self._queries.values()
            for is_key in kinds
        ]
        found["attention_mass"] = np.stack(masses)
        # Of a grid of one patch, no patch has a neighbour.
        found["head_score"] = np.stack([pairs / max(1, pairs.any(1).sum()) for pairs in related])
        return found


def rollout(
    patterns: Sequence[Float[Tensor, "image head query_token key_token"]],
) -> list[Float[Tensor, "image query_token key_token"]]:
    """How much of each token at the input is in each token after every layer, by attention alone.

    Abnar and Zuidema 2020 (arXiv 2005.00928): the product, from the first layer on, of the mean over heads of
    the pattern, mixed half and half with the identity for the residual connection.

    Args:
        patterns: of every layer, from the first.
    """
    rolled: list[Tensor] = []
    for pattern in patterns:
        mean = pattern.mean(1)
        mixed = (mean + torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)) / 2
        rolled.append(mixed @ rolled[-1] if rolled else mixed)
    return rolled
