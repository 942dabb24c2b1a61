"""Sizes, labels and random numbers that all examples are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

N_LAYERS, N_HEADS, N_FRAMES, N_ROWS, N_COLUMNS, WIDTH, N_LATENTS = 2, 2, 2, 2, 3, 4, 5
IMAGES = ["a", "b", "c"]
CLASSES = ["square", "ellipse", "heart"]
PATCH = 8


@dataclass(frozen=True)
class Maker:
    """What examples are made with.

    Attributes:
        random: where numbers come from.
        clips: whether images are clips.
        cells: what is patched or ablated one by one in a layer: token, head.
    """

    random: np.random.Generator
    clips: bool
    cells: Sequence[str]

    @property
    def n_tokens(self) -> int:
        """CLS and the patches."""
        return 1 + (N_FRAMES if self.clips else 1) * N_ROWS * N_COLUMNS

    def tokens(self, dim: str = "token") -> dict[str, Any]:
        """Coordinates that say what a token is and where it lies."""
        import numpy as np

        frame, row, column = np.indices((N_FRAMES if self.clips else 1, N_ROWS, N_COLUMNS)).reshape(3, -1)
        places = {"patch_row": row, "patch_col": column, **({"patch_frame": frame} if self.clips else {})}
        return {
            "token_kind": (dim, np.array(["cls", *["patch"] * row.size])),
            **{name: (dim, np.concatenate([[-1], values])) for name, values in places.items()},
        }

    def uniform(self, low: float, high: float, *shape: int) -> np.ndarray:
        """Numbers between two others."""
        return self.random.uniform(low, high, shape)

    def patterns(self, *shape: int) -> np.ndarray:
        """Patterns [*shape, query_token, key_token]."""
        import numpy as np

        return self.random.dirichlet(np.full(self.n_tokens, 0.5), size=(*shape, self.n_tokens))


def of_images() -> dict[str, Any]:
    """Ids of the images and numbers of their classes."""
    return {"image": IMAGES, "label": ("image", [0, 1, 2])}


def of_classes() -> dict[str, Any]:
    """Names of the classes."""
    return {"class_name": ("class", CLASSES)}


def of_heads() -> dict[str, Any]:
    """Numbers of layers and heads."""
    return {"layer": range(N_LAYERS), "head": range(N_HEADS)}
