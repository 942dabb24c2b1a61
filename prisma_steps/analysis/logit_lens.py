"""Logit lens: what the model's own final norm and head say of the residual stream at every layer.

nostalgebraist 2020, "interpreting GPT: the logit lens" (lesswrong.com/posts/AcKRB8wDpdaN6v6ru).
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from prisma_steps.models.hooked import HookedViT


class Correct(NamedTuple):
    """How logits rate the correct class.

    Attributes:
        logit: its logit.
        rank: number of classes with a higher one.
        probability: its softmax.
        ce: −ln of that, in nat.
    """

    logit: Float[Tensor, "image *token"]
    rank: Int[Tensor, "image *token"]
    probability: Float[Tensor, "image *token"]
    ce: Float[Tensor, "image *token"]


def residual_stream(
    vit: HookedViT, pixels: Float[Tensor, "image *frame channel row column"]
) -> list[Float[Tensor, "image token d_model"]]:
    """The stream before every block, from the embedding on, and after the last: n_layers + 1 tensors."""
    last = ("resid_post", vit.n_layers - 1)
    cache = vit.read(pixels, ["resid_pre", f"blocks.{last[1]}.hook_resid_post"])
    return [*(cache["resid_pre", layer] for layer in range(vit.n_layers)), cache[last]]


def token_logits(
    vit: HookedViT, resid: Float[Tensor, "image token d_model"]
) -> Float[Tensor, "image token class"]:
    """The logits of every token alone: those of a sequence in which every token is this one.

    Final norm, pooling and head are the model's own. At the last layer the token that a head reads (CLS) has
    the model's logits. Where a head reads the mean of normed tokens, the model's logits are the mean of
    theirs. A pooling that attends (SigLIP, V-JEPA 2) can attend to this token alone.
    """
    n_prefix = int((vit.token_coords()["token_kind"] != "patch").sum())
    alone = resid.flatten(0, 1).unsqueeze(1).repeat(1, n_prefix + 1, 1)
    return vit.forward_from(vit.n_layers, alone).unflatten(0, resid.shape[:2])


def exit_logits(vit: HookedViT, resid: Float[Tensor, "image token d_model"]) -> Float[Tensor, "image class"]:
    """The logits when the stream leaves the model here: the head reads it as it reads that of the end."""
    return vit.forward_from(vit.n_layers, resid)


def top_classes(
    logits: Float[Tensor, "image *token class"], k: int
) -> tuple[Float[Tensor, "image *token place"], Int[Tensor, "image *token place"]]:
    """The k highest logits, from the highest, and their classes."""
    return logits.topk(k, dim=-1)


def rate(logits: Float[Tensor, "image *token class"], classes: Int[Tensor, " image"]) -> Correct:
    """How logits rate the class of each image."""
    index = classes.view(-1, *[1] * (logits.ndim - 1)).expand(*logits.shape[:-1], 1)
    logit = logits.gather(-1, index)
    log_probability = logits.log_softmax(-1).gather(-1, index).squeeze(-1)
    rank = (logits > logit).sum(-1)
    return Correct(logit.squeeze(-1), rank, log_probability.exp(), -log_probability)


def lens_bytes(vit: HookedViT) -> int:
    """Bytes that an image takes on its way through the lens: logits of its tokens, and every stream."""
    n_tokens = len(vit.token_coords()["token_kind"])
    # Logits, their softmax and comparisons; a token alone stands among copies of itself.
    of_head = 3 * vit.n_classes + 8 * vit.d_model
    return 4 * n_tokens * (of_head + (vit.n_layers + 1) * vit.d_model)
