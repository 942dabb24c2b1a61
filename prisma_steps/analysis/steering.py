"""Steering: what a model answers when latents of a dictionary are set, raised or scaled.

What the dictionary leaves out stays (the error term), so that the site moves along the decoder rows of the
steered latents and nowhere else: y + Δf · W_dec, in the model's own space (Templeton et al. 2024, "Scaling
monosemanticity", on feature steering; Joseph et al. 2025, arXiv 2504.08729, on vision transformers). Decoders
being linear, a cell costs no encoding and no decoding of its own; it equals a run with the dictionary spliced
in and its latents edited.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prisma_steps.analysis.cells import Change, Tail
from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.sites import SiteError, SiteKey, check_keys
from prisma_steps.models.splicing import Splice, Splicing
from prisma_steps.sae.autoencoder import Autoencoder
from prisma_steps.step import StepError

Mode: TypeAlias = Literal["clamp", "add", "multiply"]


class Tokens(NamedTuple):
    """The steered tokens.

    Attributes:
        in_site: their places among the tokens of the site that is written.
        in_latents: their places among those that the dictionary was trained on.
    """

    in_site: Int[Tensor, " chosen"]
    in_latents: Int[Tensor, " chosen"]


class Survey(NamedTuple):
    """What is known of every latent over a set of images, at the steered tokens.

    Attributes:
        highest: highest activation.
        mean: mean activation, in float64.
        attribution: activation · ∂ logit of a class / ∂ activation, summed over tokens, mean over images; to
            first order what the logit loses when the latent is set to 0. None where no class was asked for.
    """

    highest: Float[Tensor, " latent"]
    mean: Float[Tensor, " latent"]
    attribution: Float[Tensor, " latent"] | None


def check_splice(model: HookedViT, splice: Splice) -> Autoencoder:
    """The dictionary of a splice, once it is known that it can be steered in this model.

    Raises:
        StepError: for a crosscoder, or a site or layer that the model does not have.
    """
    Splicing({splice.writes: splice}, model, True, {})
    try:
        check_keys((splice.reads, splice.writes), model.sites, model.n_layers)
    except SiteError as error:
        raise StepError(f"the dictionary does not belong to this model: {error}") from error
    return _autoencoder(splice)


def _autoencoder(splice: Splice) -> Autoencoder:
    if not isinstance(splice.dictionary, Autoencoder):
        raise TypeError(f"a {type(splice.dictionary).__name__} has no decoder rows to steer along")
    return splice.dictionary


def steered_tokens(model: HookedViT, splice: Splice, tokens: str) -> Tokens:
    """Where ``tokens`` lie: "all" that the dictionary was trained on, or one kind of them.

    Raises:
        StepError: when the dictionary was not trained on such tokens, or the site has none.
    """
    places = model.token_coords()
    there = model.kept_at(splice.writes[0], places)
    kinds = ["pooled"] if there is None else places["token_kind"][there].tolist()
    of_dictionary = [at for at, kind in enumerate(kinds) if splice.tokens in ("all", kind)]
    chosen = [at for at in of_dictionary if tokens in ("all", kinds[at])]
    if not chosen:
        known = ", ".join(dict.fromkeys(kinds[at] for at in of_dictionary)) or "none that this site has"
        raise StepError(
            f"tokens is {tokens!r}, and the dictionary is of {splice.tokens} tokens (here: {known}): it says "
            "nothing of others. Steer those, or take a dictionary that was trained on the others"
        )
    in_latents = [of_dictionary.index(at) for at in chosen]
    return Tokens(*(torch.tensor(places, device=model.device) for places in (chosen, in_latents)))


def survey(
    model: HookedViT,
    splice: Splice,
    tokens: Tokens,
    batches: Iterable[Float[Tensor, "image *frame channel row column"]],
    of_class: int | None = None,
) -> Survey:
    """How strongly latents fire on images, and how much they give to the logit of a class.

    Args:
        model: one that gradients flow through, where there is a class.
        splice: the dictionary.
        tokens: those that count.
        batches: images.
        of_class: the class whose logit is attributed.
    """
    parts = [_survey(model, splice, tokens, pixels, of_class) for pixels in batches]
    n_images = sum(len(highest) for highest, _, _ in parts)
    highest = torch.stack([part.highest.amax(0) for part in parts]).amax(0)
    mean = torch.stack([part.mean for part in parts]).sum(0) / (n_images * len(tokens.in_site))
    if of_class is None:
        return Survey(highest, mean, None)
    given = [part.attribution for part in parts if part.attribution is not None]
    return Survey(highest, mean, torch.stack(given).sum(0) / n_images)


def _survey(model: HookedViT, splice: Splice, tokens: Tokens, pixels: Tensor, of_class: int | None) -> Survey:
    """The highest activation of every image, and sums of the rest over images and tokens."""
    given = {splice.writes: splice}
    if of_class is None:
        with torch.no_grad(), model.saes(given, error_term=True) as spliced:
            model.read(pixels, [splice.writes[0]], _layers([splice.writes]))
        latents = spliced[splice.writes][:, tokens.in_latents]
        return Survey(latents.amax(1), latents.double().sum((0, 1)), None)
    with torch.enable_grad():
        edits = {splice.writes: lambda latents: latents.detach().requires_grad_()}
        logits, spliced = model.run_with_saes(pixels, given, error_term=True, edits=edits)
        latents = spliced[splice.writes]
        (gradient,) = torch.autograd.grad(logits[:, of_class].sum(), latents)
    chosen, slope = (part.detach()[:, tokens.in_latents] for part in (latents, gradient))
    return Survey(chosen.amax(1), chosen.double().sum((0, 1)), (chosen * slope).double().sum((0, 1)))


@dataclass(frozen=True)
class Steering:
    """Cells of a sweep: every chosen latent at every amount.

    Attributes:
        splice: the dictionary, an ``Autoencoder``, and its place.
        tokens: those that are steered.
        latents: numbers of the latents.
        mode: ``clamp`` sets the activation to the amount, ``add`` adds the amount to it, ``multiply``
            multiplies it by the amount (1 changes nothing, 0 ablates).
        amounts: in units of activation (``multiply``: of nothing), as the dictionary has it, whose input may
            be normalised.
    """

    splice: Splice
    tokens: Tokens
    latents: Int[Tensor, " latent"]
    mode: Mode
    amounts: Float[Tensor, "latent strength"]


@torch.no_grad()
def steered_logits(
    model: HookedViT, pixels: Float[Tensor, "image *frame channel row column"], sweep: Steering, rows: int
) -> Float[Tensor, "latent strength image class"]:
    """Logits of every cell; only what comes after the dictionary is run for each.

    Args:
        model: the model that the dictionary belongs to.
        pixels: images.
        sweep: what is steered.
        rows: images of one forward pass, where every cell counts its own.
    """
    splice = sweep.splice
    tail = Tail(model, *splice.writes, tuple(pixels.shape[1:]))
    keys = [splice.reads, splice.writes, *([] if tail.reads is None else [tail.reads])]
    sites = list(dict.fromkeys(site for site, _ in keys))
    with model.saes({splice.writes: splice}, error_term=True) as spliced:
        values = model.read(pixels, sites, _layers(keys))
    activations = spliced[splice.writes][:, sweep.tokens.in_latents][..., sweep.latents]
    read = values[splice.reads].flatten(2)
    directions = _directions(splice, read, sweep)
    changes = [
        _moving(sweep, activations[..., number], amount, directions[number])
        for number, amounts in enumerate(sweep.amounts.tolist())
        for amount in amounts
    ]
    begin = pixels if tail.reads is None else values[tail.reads]
    return tail.logits(begin, changes, rows).unflatten(0, sweep.amounts.shape)


def _layers(keys: Iterable[SiteKey]) -> list[int]:
    return sorted({layer for _, layer in keys if layer is not None})


def _directions(
    splice: Splice, read: Float[Tensor, "image token d_in"], sweep: Steering
) -> Sequence[Float[Tensor, "*image_and_token d_out"]]:
    """What one unit of each latent adds to the site: its decoder row in the model's own space.

    It is the same at every token, unless the dictionary normalises each token by itself.
    """
    dictionary = _autoencoder(splice)
    of_tokens = read if splice.reads != splice.writes else read[:, sweep.tokens.in_site]
    scale = dictionary.normalisation.place(of_tokens).scale
    return [dictionary.W_dec[latent] * scale for latent in sweep.latents.tolist()]


def _moving(
    sweep: Steering, activation: Float[Tensor, "image chosen"], amount: float, direction: Tensor
) -> Change:
    """A cell that moves the steered tokens along ``direction`` by what the activation changes."""

    def change(value: Tensor) -> Tensor:
        by = {
            "clamp": lambda: amount - activation,
            "add": lambda: torch.full_like(activation, amount),
            "multiply": lambda: (amount - 1) * activation,
        }[sweep.mode]()
        moved = value.flatten(2).clone()
        moved[:, sweep.tokens.in_site] += (by[..., None] * direction).to(value.dtype)
        return moved.reshape(value.shape)

    return change
