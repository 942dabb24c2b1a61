"""Evaluation of a dictionary in the model that it was trained on, one batch of images at a time."""

from __future__ import annotations

from collections import defaultdict
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
    FiringCounts,
    ReconstructionSums,
    ce_recovered,
    density,
    max_decoder_cosine,
    summed_cross_entropy,
)
from prisma_steps.sae.tokens import chosen_tokens
from prisma_steps.step import StepError

SiteKey = tuple[str, int | None]


class HookedModel(Protocol):
    """A model whose sites can be read and written."""

    def run_with_cache(
        self, pixels: Tensor, sites: Sequence[str], layers: Sequence[int] | None = None
    ) -> tuple[Tensor, Mapping[SiteKey, Tensor]]:
        """Logits, and the activations at ``sites`` in ``layers``."""
        ...

    def run_with_hooks(self, pixels: Tensor, hooks: Mapping[SiteKey, Callable[[Tensor], Tensor]]) -> Tensor:
        """Logits of a run in which each hook replaces what its site holds."""
        ...


class Evaluation:
    """The metrics of one dictionary, gathered batch by batch.

    Only the tokens that the dictionary was trained on are encoded, counted and replaced. "all" means all of
    those, and token kinds of which there is none are left out.
    """

    def __init__(
        self, autoencoder: Autoencoder, site: SiteKey, token_kind: Shaped[np.ndarray, " token"], tokens: str
    ) -> None:
        """Evaluate ``autoencoder`` at ``site``.

        Args:
            autoencoder: on the device of the model.
            site: name and layer.
            token_kind: of each token of the site.
            tokens: what the dictionary was trained on: "all" or a token kind.

        Raises:
            StepError: when the site has no such token.
        """
        device = autoencoder.W_dec.device
        chosen = chosen_tokens(token_kind, tokens)
        self._autoencoder = autoencoder
        self._site = site
        self._chosen = torch.from_numpy(chosen).to(device)
        kinds = token_kind[chosen]
        self._groups = {
            str(kind): torch.from_numpy(kinds == kind).to(device) for kind in dict.fromkeys(kinds.tolist())
        }
        self._sums: dict[str, ReconstructionSums] = {}
        self._firings = FiringCounts(len(autoencoder.b_enc))
        self._ce: dict[str, float] = defaultdict(float)
        self._n_images = 0

    @torch.no_grad()
    def add(
        self,
        model: HookedModel,
        pixels: Float[Tensor, "image channel row column"],
        labels: Int[Tensor, " image"],
    ) -> None:
        """Run the model on a batch of images, and again with the site replaced.

        Raises:
            StepError: when the site is not as wide as the dictionary.
        """
        site, layer = self._site
        logits, cache = model.run_with_cache(pixels, [site], None if layer is None else [layer])
        activations = cache[self._site]
        if activations.shape[-1] != len(self._autoencoder.b_dec):
            raise StepError(
                f"{site} of this model is {activations.shape[-1]} wide, the dictionary "
                f"{len(self._autoencoder.b_dec)}: evaluate it in the model that it was trained on"
            )
        x = activations[:, self._chosen]
        latents = self._autoencoder.encode(x)
        x_hat = self._autoencoder.decode(latents)
        self._add_reconstruction(x, x_hat, latents)
        self._firings.add(latents)
        self._add_cross_entropy(model, pixels, labels, logits, activations, x_hat)
        self._n_images += len(pixels)

    def _add_reconstruction(
        self,
        x: Float[Tensor, "image token d_model"],
        x_hat: Float[Tensor, "image token d_model"],
        latents: Float[Tensor, "image token latent"],
    ) -> None:
        for kind, where in self._groups.items():
            sums = ReconstructionSums.of(*(part[:, where].flatten(0, 1) for part in (x, x_hat, latents)))
            self._sums[kind] = self._sums[kind] + sums if kind in self._sums else sums

    def _add_cross_entropy(
        self,
        model: HookedModel,
        pixels: Float[Tensor, "image channel row column"],
        labels: Int[Tensor, " image"],
        logits: Float[Tensor, "image class"],
        activations: Float[Tensor, "image token d_model"],
        x_hat: Float[Tensor, "image token d_model"],
    ) -> None:
        """Add the cross-entropies of the clean run and of the three runs with the site replaced."""
        error = activations[:, self._chosen] - x_hat
        replacements = {
            "ce_reconstruction": x_hat,
            "ce_zero_ablation": torch.zeros_like(x_hat),
            "ce_error_term": x_hat + error,
        }
        self._ce["ce"] += summed_cross_entropy(logits, labels)
        for name, replacement in replacements.items():
            spliced = activations.clone()
            spliced[:, self._chosen] = replacement
            logits = model.run_with_hooks(pixels, {self._site: lambda _, spliced=spliced: spliced})
            self._ce[name] += summed_cross_entropy(logits, labels)

    def by_token_kind(self) -> Mapping[str, Mapping[str, float]]:
        """L0, MSE, FVU, explained variance, cosine similarity and token count of "all" and of each kind."""
        groups = {"all": reduce(add, self._sums.values()), **self._sums}
        return {kind: sums.metrics() for kind, sums in groups.items()}

    def scalars(self) -> Mapping[str, float]:
        """Cross-entropies in nat per image, CE recovered in percent, and density of the dictionary."""
        ce = {name: total / self._n_images for name, total in self._ce.items()}
        recovered = ce_recovered(ce["ce"], ce["ce_reconstruction"], ce["ce_zero_ablation"])
        return {**ce, "ce_recovered": recovered, **density(self._firings.per_token())}

    def by_latent(self) -> Mapping[str, Float[Tensor, " latent"]]:
        """Firing frequency per token and per image, and cosine to the nearest other decoder row."""
        return {
            "firing_frequency": self._firings.per_token(),
            "firing_frequency_per_image": self._firings.per_image(),
            "max_decoder_cosine": max_decoder_cosine(self._autoencoder.W_dec).cpu(),
        }
