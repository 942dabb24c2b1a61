"""What a model makes of images when a dictionary's reconstruction takes the place of what it reconstructs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.sites import ORDER, SiteKey
from prisma_steps.models.splicing import Splice

#: Runs in their order: as the model is, with ŷ for y, and with ŷ and the error term, which is y again.
RUNS = ("clean", "reconstruction", "error_term")


class Comparison(NamedTuple):
    """Three runs of a model, with what the dictionary writes at the tokens that it was trained on.

    Attributes:
        value_norm: ‖y‖, in the model's own space.
        reconstruction_norm: ‖ŷ‖.
        error_norm: ‖y − ŷ‖.
        logits: of every run.
        attention: of the CLS token in a later block; None where none was asked for.
    """

    value_norm: Float[Tensor, "image token"]
    reconstruction_norm: Float[Tensor, "image token"]
    error_norm: Float[Tensor, "image token"]
    logits: Float[Tensor, "run image class"]
    attention: Float[Tensor, "run image head key_token"] | None


def comes_before_attention(splice: Splice, layer: int) -> bool:
    """Whether the attention pattern of a block depends on what the dictionary writes."""
    site, of_layer = splice.writes
    if of_layer is None:
        return ORDER[site] < ORDER["resid_post"]  # the embedding, and not the final norm or the logits
    return (of_layer, ORDER[site]) < (layer, ORDER["pattern"])


@torch.no_grad()
def compare_runs(
    model: HookedViT,
    splice: Splice,
    pixels: Float[Tensor, "image *frame channel row column"],
    chosen: Int[Tensor, " token"],
    attention_layer: int | None = None,
) -> Comparison:
    """Run the model as it is, with the dictionary spliced in, and with its error term added back.

    Args:
        model: with a head; where there is an ``attention_layer``, with a CLS token, which comes first.
        splice: an autoencoder or a transcoder.
        pixels: images.
        chosen: places of the dictionary's tokens among those of the site that it writes.
        attention_layer: the block whose attention is kept.
    """
    runs = [_run(model, splice, pixels, run, attention_layer) for run in RUNS]
    clean, replaced = (value.flatten(2)[:, chosen].double() for value, _, _ in runs[:2])
    norms = (value.norm(dim=-1).float() for value in (clean, replaced, clean - replaced))
    attention = [pattern for _, _, pattern in runs if pattern is not None]
    return Comparison(
        *norms,
        logits=torch.stack([logits for _, logits, _ in runs]),
        attention=torch.stack(attention) if attention else None,
    )


def _run(
    model: HookedViT, splice: Splice, pixels: Tensor, run: str, attention_layer: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What is at the written site, the logits, and the attention of the CLS token."""
    keys: list[SiteKey] = [splice.writes]
    if attention_layer is not None:
        keys.append(("pattern", attention_layer))
    given = {} if run == "clean" else {splice.writes: splice}
    with model.saes(given, error_term=run == "error_term"):
        logits, values = model.run_with_cache(
            pixels,
            list(dict.fromkeys(site for site, _ in keys)),
            sorted({layer for _, layer in keys if layer is not None}),
        )
    attention = None if attention_layer is None else values[keys[1]][:, :, 0]
    return values[splice.writes], logits, attention
