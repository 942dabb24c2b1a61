"""What the residual stream is the sum of, in tensors that gradients flow through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from prisma_steps.models.sites import SiteError, SiteKey

if TYPE_CHECKING:
    from prisma_steps.models.structure import Structure


class Decomposition:
    """Decompositions of the residual stream of one run; ``ActivationCache`` gives the same with labels.

    All raise ``SiteError`` naming what the run did not keep.
    """

    def __init__(
        self, model: Structure, values: Mapping[SiteKey, Tensor], token_kind: Sequence[str] | np.ndarray
    ) -> None:
        """Take apart ``values`` of a run of ``model`` on tokens of these kinds."""
        self._model = model
        self._values = values
        self._token_kind = np.asarray(token_kind)

    @property
    def component_names(self) -> list[str]:
        """Names along ``component``: ``embed``, ``attn_0``, ``mlp_0``, …."""
        return ["embed", *(f"{which}_{layer}" for which, layer in self._writers())]

    def _writers(self) -> list[tuple[str, int]]:
        kinds = ["attn", *["mlp"] * ("mlp_out" in self._model.sites)]
        return [(which, layer) for layer in range(self._model.n_layers) for which in kinds]

    def decompose_residual(self) -> Float[Tensor, "component image token d_model"]:
        """What was added to the residual stream until its end; sums to ``resid_post`` of the last layer.

        Needs ``full_embed`` and, of every layer, ``attn_out`` (of TimeSformer, whose block attends twice,
        ``resid_pre`` and ``resid_mid``) and ``mlp_out`` where there are MLPs.
        """
        return torch.stack(
            [self._kept("full_embed", None), *(self._written(*writer) for writer in self._writers())]
        )

    def _written(self, which: str, layer: int) -> Tensor:
        if f"{which}_out" in self._model.sites:
            return self._kept(f"{which}_out", layer)
        return self._kept("resid_mid", layer) - self._kept("resid_pre", layer)

    def accumulated_residual(self) -> Float[Tensor, "layer image token d_model"]:
        """The residual stream before every block, and after the last: [n_layers + 1, …].

        Needs ``resid_pre`` of every layer and ``resid_post`` of the last.
        """
        layers = range(self._model.n_layers)
        before = [self._kept("resid_pre", layer) for layer in layers]
        return torch.stack([*before, self._kept("resid_post", layers[-1])])

    def head_results(self) -> Float[Tensor, "layer head image token d_model"]:
        """What every head adds to the residual stream, after LayerScale; needs ``z`` of every layer.

        The output bias (times LayerScale) is no head's: with it, the heads of a layer sum to ``attn_out``.
        """
        return torch.stack([self._head_results(layer) for layer in range(self._model.n_layers)])

    def _head_results(self, layer: int) -> Float[Tensor, "head image token d_model"]:
        z, weight = self._kept("z", layer), self._model.weights["W_O", layer]
        return torch.einsum("ithd,hdm->hitm", z, weight) * self._model.layer_scale(layer, "attn")

    def neuron_results(
        self, layer: int, tokens: slice | Sequence[int] = slice(None)
    ) -> Float[Tensor, "d_mlp image token d_model"]:
        """What every neuron of a layer adds to the residual stream, after LayerScale; needs ``mlp_post``.

        The output bias (times LayerScale) is no neuron's: with it, they sum to ``mlp_out``.

        Args:
            layer: the block.
            tokens: positions in the sequence; all of a real model rarely fit in memory.
        """
        post, weight = self._kept("mlp_post", layer)[:, tokens], self._model.weights["W_out", layer]
        return torch.einsum("itn,nm->nitm", post, weight) * self._model.layer_scale(layer, "mlp")

    def apply_final_norm(
        self,
        parts: Float[Tensor, "*part image token d_model"],
        tokens: Sequence[int] | None = None,
        frozen_scale: bool = True,
    ) -> Float[Tensor, "*part image normed_token d_model"]:
        """What each part contributes to the output of the final norm, at the tokens that ``ln_final`` has.

        Where the norm is of CLS alone, those are CLS; where it is of the mean of the patches, that one.
        Without a final norm parts are returned as they are.

        Args:
            parts: summands of the last residual stream.
            tokens: positions in the sequence of the parts' tokens (None = all).
            frozen_scale: divide by the standard deviation of the whole stream, kept by the run
                (``resid_post`` of the last layer), without the norm's shift: the map is then linear, and
                contributions plus the shift sum to ``ln_final``. Else apply the norm to each part alone, as
                the logit lens does.

        Raises:
            SiteError: also for a scale that cannot be frozen, and for parts without a token that is normed.
        """
        norm = self._model.final_norm
        if norm is None:
            return parts
        places = np.arange(len(self._token_kind)) if tokens is None else np.asarray(tokens)
        parts = self._as_normed(parts, places)
        if not frozen_scale:
            return norm(parts)
        if not isinstance(norm, nn.LayerNorm):
            raise SiteError(
                f"the final norm is {type(norm).__name__}, and only a LayerNorm's scale can be frozen"
            )
        last = self._kept("resid_post", self._model.n_layers - 1)[:, places.tolist()]
        last = self._as_normed(last, places)
        scale = (last.var(-1, unbiased=False, keepdim=True) + norm.eps).rsqrt()
        return (parts - parts.mean(-1, keepdim=True)) * scale * norm.weight

    def _as_normed(self, parts: Tensor, places: np.ndarray) -> Tensor:
        """What the final norm is given of parts at these places."""
        scope = self._model.norm_scope
        if scope == "all":
            return parts
        kind = {"cls": "cls", "pooled": "patch"}[scope]
        wanted = np.flatnonzero(self._token_kind == kind)
        if not np.isin(wanted, places).all():
            what = "the CLS token" if scope == "cls" else "the mean of all patches"
            raise SiteError(f"the final norm is of {what}, which parts at tokens {places.tolist()} lack")
        picked = parts[..., np.flatnonzero(np.isin(places, wanted)).tolist(), :]
        return picked if scope == "cls" else picked.mean(-2, keepdim=True)

    def _kept(self, site: str, layer: int | None) -> Tensor:
        if (site, layer) not in self._values:
            where = site if layer is None else f"{site} of layer {layer}"
            raise SiteError(f"this needs {where}: name the site when you run the model")
        return self._values[site, layer]
