"""Many changes of one site in few forward passes.

A cell is one run of a model in which the value at one site is changed. Nothing before the site is computed
again, and several cells of the same images run as one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.sites import SiteKey

#: The value at a site in one cell, made of the value in the plain run, which must be left as it is.
Change: TypeAlias = Callable[[Float[Tensor, "image token *width"]], Float[Tensor, "image token *width"]]

#: Images of one batch, at most: more make a forward pass on a CPU no faster.
IMAGES_AT_ONCE = 32

_FLOAT_BYTES = 4


class Budget(NamedTuple):
    """What fits into memory at once, one of each at least.

    Attributes:
        images: images whose residual stream is kept.
        rows: images of one forward pass, where every cell counts its own.
    """

    images: int
    rows: int


def budget(model: HookedViT, memory_mb: int, floats_per_image: int = 0) -> Budget:
    """Half of ``memory_mb`` for what is kept of a batch of images, half for the forward passes on it.

    Args:
        model: whose sizes count.
        memory_mb: mebibytes for activations; weights come on top.
        floats_per_image: what is kept of an image beside the residual stream of every layer.
    """
    n_tokens = len(model.token_coords()["token_kind"])
    kept = n_tokens * model.d_model * (model.n_layers + 1) + floats_per_image
    # Alive at once in a block: the stream, its sum, the norm, q, k, v, z and temporaries; the MLP twice.
    row = n_tokens * (10 * model.d_model + 2 * model.d_mlp) + model.n_heads * n_tokens**2
    half = memory_mb * 2**20 // 2 // _FLOAT_BYTES
    rows = max(1, half // row)
    return Budget(max(1, min(IMAGES_AT_ONCE, rows, half // kept)), rows)


@dataclass(frozen=True)
class Tail:
    """What is left of a model's run from one site on.

    Attributes:
        model: any; without gradients it may be one made for inference.
        site: a site with the dims image, token, ….
        layer: its block; None for a site that exists once.
        shape: [(frame,) channel, row, column] of the input; None: as the model is configured.
    """

    model: HookedViT
    site: str
    layer: int | None
    shape: tuple[int, ...] | None = None

    @property
    def start(self) -> int:
        """The first block that runs anew; ``n_layers`` is the end."""
        once = {"embed": 0, "full_embed": 0, "ln_final": self.model.n_layers}
        if self.layer is None:
            return once[self.site]
        return self.layer + (self.site == "resid_post")

    @property
    def reads(self) -> SiteKey | None:
        """The site whose value the tail starts from; None for that of the pixels themselves."""
        if self.site == "embed":
            return None
        return ("resid_pre", 0) if self.start == 0 else ("resid_post", self.start - 1)

    def logits(
        self, begin: Float[Tensor, "image *any"], changes: Sequence[Change], rows: int
    ) -> Float[Tensor, "cell image class"]:
        """Logits of every cell.

        Args:
            begin: the value at ``reads`` in the plain run, or the pixels where it is None.
            changes: what each cell does to the value at the site.
            rows: images of one forward pass, where every cell counts its own.
        """
        at_once = max(1, rows // len(begin))
        parts = [changes[first : first + at_once] for first in range(0, len(changes), at_once)]
        return torch.cat([self._run(begin, part).unflatten(0, (len(part), -1)) for part in parts])

    def _run(self, begin: Tensor, changes: Sequence[Change]) -> Float[Tensor, "row class"]:
        if self.site in ("resid_pre", "resid_post", "full_embed"):
            changed = torch.cat([change(begin) for change in changes])
            return self.model.forward_from(self.start, changed, shape=self.shape)
        repeated = begin.repeat(len(changes), *[1] * (begin.ndim - 1))

        def write(value: Tensor) -> Tensor:
            cells = value.unflatten(0, (len(changes), -1))
            return torch.cat([change(cell) for change, cell in zip(changes, cells, strict=True)])

        hooks = {(self.site, self.layer): write}
        if self.reads is None:
            return self.model.run_with_hooks(repeated, hooks)
        return self.model.forward_from(self.start, repeated, hooks, self.shape)
