"""Circuits of latents: what each latent of a dictionary, and what it leaves out, does for the answer.

Sparse feature circuits (Marks et al. 2024, arXiv 2403.19647). A dictionary takes a site's value apart into
latents and an error term, which together are that value again: nothing changes until one of them does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prisma_steps.analysis.metrics import Metric
from prisma_steps.models.sites import ORDER, SiteError, SiteKey, Tap, check_keys
from prisma_steps.models.splicing import Splice
from prisma_steps.sae.tokens import chosen_tokens
from prisma_steps.step import StepError

if TYPE_CHECKING:
    from prisma_steps.models.hooked import HookedViT


class State(NamedTuple):
    """What a dictionary makes of one run.

    Attributes:
        x: what it reads, at its tokens.
        latents: what it makes of that.
        error: what it writes the place of, minus what it decodes.
    """

    x: Float[Tensor, "image token d_in"]
    latents: Float[Tensor, "image token latent"]
    error: Float[Tensor, "image token d_out"]


@dataclass(frozen=True)
class Placed:
    """A dictionary in a model.

    Attributes:
        model: the model.
        splice: the dictionary, and where it reads and writes.
    """

    model: HookedViT
    splice: Splice

    @cached_property
    def tokens(self) -> Mapping[SiteKey, Int[Tensor, " token"]]:
        """Which tokens of the sites that it reads and writes are its own.

        Raises:
            StepError: when a site has none of them.
        """
        return {key: self._tokens_at(key) for key in (self.splice.reads, self.splice.writes)}

    def _tokens_at(self, key: SiteKey) -> Int[Tensor, " token"]:
        places = self.model.token_coords()
        at = self.model.kept_at(key[0], places)
        kinds = np.array(["pooled"]) if at is None else places["token_kind"][at]
        chosen = np.flatnonzero(chosen_tokens(kinds, self.splice.tokens))
        return torch.from_numpy(chosen).to(self.model.device)

    def state(self, seen: Mapping[SiteKey, Tensor]) -> State:
        """Latents and error term of a run that held ``seen`` at its sites.

        Raises:
            StepError: when they are of another width than the dictionary.
        """
        x, y = (seen[key].flatten(2)[:, self.tokens[key]] for key in (self.splice.reads, self.splice.writes))
        self._check_widths(x, y)
        latents = self.splice.dictionary.encode(x)
        return State(x, latents, y - self.splice.dictionary.decode(latents, x))

    def _check_widths(self, x: Tensor, y: Tensor) -> None:
        shape = self.splice.dictionary.shape
        if (x.shape[-1], y.shape[-1]) != (shape.d_in, shape.d_out):
            raise StepError(
                f"the dictionary of {self.name} is {shape.d_in} → {shape.d_out} wide, and its sites of this "
                f"model {x.shape[-1]} → {y.shape[-1]}: it belongs to another model"
            )

    @property
    def name(self) -> str:
        """The site that it writes: ``resid_post 2``."""
        site, layer = self.splice.writes
        return site if layer is None else f"{site} {layer}"

    @property
    def n_nodes(self) -> int:
        """Its latents, and its error term."""
        return self.splice.dictionary.shape.n_latents + 1

    def written(self, value: Tensor, state: State) -> Tensor:
        """The site's value with what latents and error term make in place of its own tokens."""
        whole = value.flatten(2).clone()
        made = self.splice.dictionary.decode(state.latents, state.x) + state.error
        whole[:, self.tokens[self.splice.writes]] = made.to(whole.dtype)
        return whole.reshape(value.shape)


def placed_in_order(model: HookedViT, splices: Iterable[Splice]) -> list[Placed]:
    """Dictionaries in their model, in the order in which a run comes to what they write.

    Raises:
        StepError: for a crosscoder, a place that the model does not have, and two dictionaries of one site.
    """
    placed = sorted((Placed(model, splice) for splice in splices), key=_order)
    for one, other in zip(placed, [*placed[1:], None], strict=True):
        if one.splice.dictionary.shape.kind == "crosscoder":
            raise StepError(
                f"the dictionary of {one.name} is a crosscoder: take one autoencoder for each layer"
            )
        if other is not None and other.splice.writes == one.splice.writes:
            raise StepError(f"two dictionaries are of {one.name}: give one for each site")
        try:
            check_keys((one.splice.reads, one.splice.writes), model.sites, model.n_layers)
        except SiteError as error:
            raise StepError(f"the dictionary of {one.name} does not belong to this model: {error}") from error
    return placed


def _order(placed: Placed) -> tuple[int, int]:
    site, layer = placed.splice.writes
    late = ORDER[site] > ORDER["resid_post"]
    return (placed.model.n_layers if late else -1) if layer is None else layer, ORDER[site]


def states_of(
    model: HookedViT, pixels: Float[Tensor, "image *frame channel row column"], placed: Iterable[Placed]
) -> tuple[Float[Tensor, "image class"], list[State]]:
    """Logits of the plain run, and what each dictionary makes of it."""
    placed = list(placed)
    seen: dict[SiteKey, Tensor] = {}
    logits = model.run_with_hooks(pixels, _seeing(seen, placed))
    return logits, [one.state(seen) for one in placed]


def latent_effects(
    placed: Placed,
    pixels: Float[Tensor, "image *frame channel row column"],
    clean: State,
    corrupted: State,
    metric: Metric,
    n_steps: int,
) -> tuple[Float[Tensor, " latent"], Float[Tensor, ""]]:
    """The change of the metric when a latent, or the error term, takes its corrupted value at all tokens.

    (corrupted − clean) times the gradient, the mean over n_steps runs between the two (Marks et al. 2024,
    equation 4, in the middles of equal parts), or of the clean run where n_steps is 0; summed over tokens and
    images. All before the dictionary is clean. Effects sum to that of the whole site, as the steps grow.

    Args:
        placed: the dictionary in its model.
        pixels: the clean images.
        clean: what the dictionary makes of them.
        corrupted: what it makes of their counterparts.
        metric: what is explained, of these pairs.
        n_steps: runs.
    """
    change = (corrupted.latents - clean.latents, corrupted.error - clean.error)
    effects = torch.zeros_like(change[0][0, 0]), torch.zeros_like(change[1][0, 0, 0])
    places = [(step + 0.5) / n_steps for step in range(n_steps)] or [0.0]
    for place in places:
        latents, error = (
            part + place * by for part, by in zip((clean.latents, clean.error), change, strict=True)
        )
        by_latents, by_error = _gradients(placed, pixels, State(clean.x, latents, error), metric)
        effects[0].add_((change[0] * by_latents).sum((0, 1)), alpha=1 / len(places))
        effects[1].add_((change[1] * by_error).sum(), alpha=1 / len(places))
    return effects


def _gradients(
    placed: Placed, pixels: Tensor, state: State, metric: Metric
) -> tuple[Float[Tensor, "image token latent"], Float[Tensor, "image token d_out"]]:
    """Gradients of the metric by latents and error term of a run that has these."""
    leaves = [part.detach().requires_grad_() for part in (state.latents, state.error)]
    held = State(state.x, *leaves)
    with torch.enable_grad():
        logits = placed.model.run_with_hooks(
            pixels, {placed.splice.writes: lambda value: placed.written(value, held)}
        )
        by_latents, by_error = torch.autograd.grad(metric(logits).sum(), leaves)
    return by_latents, by_error


def latent_edges(
    sources: Placed,
    targets: Placed,
    pixels: Float[Tensor, "image *frame channel row column"],
    clean: tuple[State, State],
    corrupted: State,
    metric: Metric,
    chosen: Int[Tensor, " target"],
) -> Float[Tensor, "source target"]:
    """Effects of latents of one dictionary that go through latents of a later one.

    ∇_target metric · ∇_source target · (source corrupted − source clean), of the clean run, summed over
    tokens and images (Marks et al. 2024, equation 5). Where all that the source does goes through the later
    dictionary's site, the edges to all its latents and its error term sum to the effect of the source by the
    gradient of the clean run.

    Args:
        sources: the earlier dictionary.
        targets: the later one.
        pixels: the clean images.
        clean: what both make of them.
        corrupted: what the earlier makes of their counterparts.
        metric: what is explained, of these pairs.
        chosen: latents of the later one that are targets.

    Returns:
        Rows: all latents of the earlier one and its error term. Columns: ``chosen`` and the error term.
    """
    weights = _gradients(targets, pixels, clean[1], metric)
    leaves = [part.detach().requires_grad_() for part in (clean[0].latents, clean[0].error)]
    change = (corrupted.latents - clean[0].latents, corrupted.error - clean[0].error)
    with torch.enable_grad():
        reached = _reached(sources, State(clean[0].x, *leaves), targets, pixels)
        by_latent = (weights[0] * reached.latents)[..., chosen].sum((0, 1))
        ends = torch.cat([by_latent, (weights[1] * reached.error).sum().view(1)])
        columns = [torch.autograd.grad(end, leaves, retain_graph=True) for end in ends]
    rows = [((change[0] * latents).sum((0, 1)), (change[1] * error).sum()) for latents, error in columns]
    return torch.stack([torch.cat([latents, error.view(1)]) for latents, error in rows], dim=1)


def _reached(sources: Placed, state: State, targets: Placed, pixels: Tensor) -> State:
    """What the later dictionary makes of a run in which the earlier one has this state."""
    seen: dict[SiteKey, Tensor] = {}
    hooks: dict[SiteKey, Tap] = _seeing(seen, [targets])
    after = hooks.get(sources.splice.writes, lambda value: value)
    hooks[sources.splice.writes] = lambda value: after(sources.written(value, state))
    sources.model.run_with_hooks(pixels, hooks)
    return targets.state(seen)


@torch.no_grad()
def run_latents(
    model: HookedViT,
    pixels: Float[Tensor, "image *frame channel row column"],
    placed: Sequence[Placed],
    kept: Sequence[Bool[Tensor, " node"]],
    ablated: Sequence[State],
) -> Float[Tensor, "image class"]:
    """Logits of a run in which latents and error terms outside of a circuit have other values.

    Those that are kept have what they make of this very run, in which earlier ones are changed.

    Args:
        model: the model.
        pixels: the clean images.
        placed: dictionaries, each at a site of its own.
        kept: of each, which latents are kept, and in the last place whether its error term is.
        ablated: values that the others take; [1, …] for all images.
    """
    seen: dict[SiteKey, Tensor] = {}
    hooks = _seeing(seen, placed)
    for one, mask, other in zip(placed, kept, ablated, strict=True):
        before = hooks[one.splice.writes]
        hooks[one.splice.writes] = _mixing(seen, one, mask, other, before)
    return model.run_with_hooks(pixels, hooks)


def _mixing(
    seen: dict[SiteKey, Tensor], placed: Placed, mask: Bool[Tensor, " node"], other: State, see: Tap
) -> Tap:
    def tap(value: Tensor) -> Tensor:
        see(value)
        state = placed.state(seen)
        latents = torch.where(mask[:-1], state.latents, other.latents)
        error = torch.where(mask[-1], state.error, other.error)
        return see(placed.written(value, State(state.x, latents, error)))

    return tap


def _seeing(seen: dict[SiteKey, Tensor], placed: Iterable[Placed]) -> dict[SiteKey, Tap]:
    """Taps that keep what is at the sites of dictionaries."""

    def at(key: SiteKey) -> Tap:
        def tap(value: Tensor) -> Tensor:
            seen[key] = value
            return value

        return tap

    return {key: at(key) for one in placed for key in (one.splice.reads, one.splice.writes)}
