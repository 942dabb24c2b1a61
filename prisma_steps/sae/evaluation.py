"""Evaluation of a dictionary in the model that it was trained on, one batch of images at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from prisma_steps.sae.autoencoder import Autoencoder
from prisma_steps.sae.metrics import (
    ClassificationSums,
    LatentSums,
    ReconstructionSums,
    ce_recovered,
    density,
    nearest_rows,
    states,
)
from prisma_steps.sae.place import Place, SiteKey
from prisma_steps.sae.tokens import chosen_tokens
from prisma_steps.step import StepError

#: Bytes of latents that are held at once, of one image at least.
LATENT_BYTES = 2**28

#: What a run is given that starts at a block.
_START = "resid_pre"


class HookedModel(Protocol):
    """A model whose sites can be read and written."""

    def run_with_cache(
        self, pixels: Tensor, sites: Sequence[str], layers: Sequence[int] | None = None
    ) -> tuple[Tensor, Mapping[SiteKey, Tensor]]:
        """Logits, and the activations at ``sites`` in ``layers``."""
        ...

    def read(
        self, pixels: Tensor, sites: Sequence[str], layers: Sequence[int] | None = None
    ) -> Mapping[SiteKey, Tensor]:
        """The activations at ``sites`` in ``layers``, without what comes after them."""
        ...

    def run_with_hooks(self, pixels: Tensor, hooks: Mapping[SiteKey, Callable[[Tensor], Tensor]]) -> Tensor:
        """Logits of a run in which each hook replaces what its site holds."""
        ...

    def forward_from(
        self,
        layer: int,
        resid_pre: Tensor,
        hooks: Mapping[SiteKey, Callable[[Tensor], Tensor]],
        shape: Sequence[int],
    ) -> Tensor:
        """Logits that follow from the stream before block ``layer``, of input of this shape, with hooks."""
        ...


class Evaluation:
    """The metrics of one dictionary, gathered batch by batch.

    Only the tokens that the dictionary was trained on are encoded, counted and replaced. "all" means all of
    those, and token kinds of which there is none are left out. What a dictionary writes, it is judged by: an
    autoencoder by its site, a transcoder by its target, a crosscoder by each of its layers, of which one at a
    time is replaced.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        place: Place,
        token_kind: Shaped[np.ndarray, " token"],
        cosines: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Evaluate ``autoencoder`` at ``place``.

        Args:
            autoencoder: on the device of the model.
            place: what it reads and writes.
            token_kind: of each token of its sites.
            cosines: takes temperature and bias of a zero-shot head off its logits.

        Raises:
            StepError: when the sites have no such token.
        """
        chosen = chosen_tokens(token_kind, place.tokens)
        kinds = token_kind[chosen]
        device = autoencoder.W_dec.device
        self._autoencoder = autoencoder
        self._place = place
        self._cosines = cosines
        self._chosen = torch.from_numpy(chosen).to(device)
        self._groups = {
            str(kind): torch.from_numpy(kinds == kind).to(device) for kind in dict.fromkeys(kinds.tolist())
        }
        self._sums: list[dict[str, ReconstructionSums]] = [{} for _ in place.writes]
        self._latents = LatentSums(autoencoder.shape.n_latents)
        self._clean: ClassificationSums | None = None
        self._replaced: list[dict[str, ClassificationSums]] = [{} for _ in place.writes]
        within = any(layer is not None and site != "resid_post" for site, layer in place.writes)
        self._starts = [_START] if within else []

    @torch.no_grad()
    def add(
        self,
        model: HookedModel,
        pixels: Float[Tensor, "image channel row column"],
        labels: Int[Tensor, " image"] | None,
    ) -> None:
        """Run the model on a batch of images, and again with what the dictionary writes replaced.

        Args:
            model: whose sites are read.
            pixels: as it takes them.
            labels: classes of the images; None leaves out all that takes logits.

        Raises:
            StepError: when a site is not as wide as the dictionary.
        """
        keys = dict.fromkeys((*self._place.reads, *self._place.writes))
        sites = list(dict.fromkeys(site for site, _ in keys))
        layers = list(dict.fromkeys(layer for _, layer in keys if layer is not None))
        if labels is None:
            values = model.read(pixels, sites, layers)
        else:
            logits, values = model.run_with_cache(
                pixels, list(dict.fromkeys([*sites, *self._starts])), layers
            )
            clean = self._classified(logits, labels)
            self._clean = clean if self._clean is None else self._clean + clean
        self._check_widths(values)
        y_hats = self._reconstruct(values)
        if labels is not None:
            for key, y_hat, sums in zip(self._place.writes, y_hats, self._replaced, strict=True):
                self._run_replaced(model, pixels, labels, key, values, y_hat, sums)

    def _check_widths(self, values: Mapping[SiteKey, Tensor]) -> None:
        shape = self._autoencoder.shape
        written = shape.d_out // len(self._place.writes)
        for keys, width in ((self._place.reads, shape.d_model), (self._place.writes, written)):
            for key in keys:
                if values[key].shape[-1] != width:
                    raise StepError(
                        f"{key[0]} of this model is {values[key].shape[-1]} wide, the dictionary {width}: "
                        "evaluate it in the model that it was trained on"
                    )

    def _reconstruct(
        self, values: Mapping[SiteKey, Tensor]
    ) -> Sequence[Float[Tensor, "image token d_model"]]:
        """What the dictionary says of each site that it writes, a few images at a time."""
        x = torch.cat([values[key][:, self._chosen] for key in self._place.reads], dim=-1)
        ys = [values[key][:, self._chosen] for key in self._place.writes]
        n_images = max(1, LATENT_BYTES // (4 * x.shape[1] * self._autoencoder.shape.n_latents))
        made = []
        for start in range(0, len(x), n_images):
            some = slice(start, start + n_images)
            latents, y_hat = self._autoencoder(x[some])
            self._latents.add(latents)
            made.append(y_hat)
            each = y_hat.unflatten(-1, (len(ys), -1)).unbind(-2)
            for y, part, sums in zip(ys, each, self._sums, strict=True):
                self._add_sums(sums, y[some], part, latents)
        return torch.cat(made).unflatten(-1, (len(ys), -1)).unbind(-2)

    def _add_sums(
        self,
        sums: dict[str, ReconstructionSums],
        y: Float[Tensor, "image token d_model"],
        y_hat: Float[Tensor, "image token d_model"],
        latents: Float[Tensor, "image token latent"],
    ) -> None:
        for kind, where in self._groups.items():
            found = ReconstructionSums.of(*(part[:, where].flatten(0, 1) for part in (y, y_hat, latents)))
            sums[kind] = sums[kind] + found if kind in sums else found

    def _run_replaced(
        self,
        model: HookedModel,
        pixels: Tensor,
        labels: Tensor,
        key: SiteKey,
        values: Mapping[SiteKey, Tensor],
        y_hat: Float[Tensor, "image chosen d_model"],
        sums: dict[str, ClassificationSums],
    ) -> None:
        """Add what the model answers with one site replaced: by ŷ, by 0, and by ŷ with the error term."""
        value = values[key]
        replacements = {
            "reconstruction": y_hat,
            "zero_ablation": torch.zeros_like(y_hat),
            "error_term": y_hat + (value[:, self._chosen] - y_hat),
        }
        for run, replacement in replacements.items():
            spliced = value.clone()
            spliced[:, self._chosen] = replacement
            logits = self._answer(model, pixels, key, spliced, values)
            found = self._classified(logits, labels)
            sums[run] = sums[run] + found if run in sums else found

    @staticmethod
    def _answer(
        model: HookedModel, pixels: Tensor, key: SiteKey, spliced: Tensor, values: Mapping[SiteKey, Tensor]
    ) -> Float[Tensor, "image class"]:
        """Logits with ``spliced`` at ``key``. Blocks in front of it, which would not differ, do not run."""
        (site, layer), shape = key, pixels.shape[1:]
        if layer is None:
            return model.run_with_hooks(pixels, {key: lambda _: spliced})
        if site == "resid_post":
            return model.forward_from(layer + 1, spliced, {}, shape)
        return model.forward_from(layer, values[_START, layer], {key: lambda _: spliced}, shape)

    def _classified(self, logits: Tensor, labels: Tensor) -> ClassificationSums:
        return ClassificationSums.of(logits, labels, None if self._cosines is None else self._cosines(logits))

    # --- what it amounts to

    def by_token_kind(self) -> Sequence[Mapping[str, Mapping[str, float]]]:
        """L0, MSE, FVU, explained variance, cosine similarity and token count of "all" and of each kind.

        One mapping for each site written.
        """
        return [
            {kind: part.metrics() for kind, part in {"all": reduce(add, sums.values()), **sums}.items()}
            for sums in self._sums
        ]

    def clean(self) -> Mapping[str, float]:
        """Cross-entropy in nat and top-1 of the model as it is; nothing where there were no classes."""
        return {} if self._clean is None else self._clean.metrics()

    def replaced(self) -> Sequence[Mapping[str, float]]:
        """Cross-entropies, top-1 and CE recovered in percent with a site replaced, of each site written."""
        return [] if self._clean is None else [self._of_site(sums) for sums in self._replaced]

    def _of_site(self, sums: Mapping[str, ClassificationSums]) -> Mapping[str, float]:
        found = {name: value for run, part in sums.items() for name, value in part.metrics(run).items()}
        for after in ("", "_without_temperature"):
            if f"ce{after}" in self.clean():
                ends = [found[f"ce_{run}{after}"] for run in ("reconstruction", "zero_ablation")]
                found[f"ce_recovered{after}"] = ce_recovered(self.clean()[f"ce{after}"], *ends)
        return found

    def density(self) -> Mapping[str, float]:
        """Shares of latents that are alive, dead and dense."""
        return density(self._latents.per_token())

    def by_latent(self) -> Mapping[str, Shaped[np.ndarray, " latent"]]:
        """How often and how strongly each latent fires, its state, its decoder row and that row's nearest."""
        rows = self._autoencoder.W_dec.cpu()
        nearest, cosine = nearest_rows(rows)
        return {
            "firing_frequency": self._latents.per_token().numpy(),
            "firing_frequency_per_image": self._latents.per_image().numpy(),
            "mean_activation": self._latents.mean_activation().numpy(),
            "max_activation": self._latents.max_activation().numpy(),
            "latent_state": np.array(states(self._latents.per_token())),
            "decoder_norm": rows.double().norm(dim=1).numpy(),
            "nearest_latent": nearest.numpy(),
            "max_decoder_cosine": cosine.numpy(),
        }
