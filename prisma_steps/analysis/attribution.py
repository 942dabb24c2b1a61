"""Direct logit attribution: what each component adds to a logit on the direct path, through no other block.

Elhage et al. 2021 (transformer-circuits.pub/2021/framework). With the scale of the final norm frozen, a logit
is a sum over what was written to the residual stream and over biases.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prisma_steps.analysis.linear_readout import read_out, with_scale_of
from prisma_steps.models.cache import ActivationCache
from prisma_steps.models.hooked import HookedViT
from prisma_steps.step import StepError

#: Largest difference between a logit and the sum of its components, as a share of the logit or of 1.
TOLERANCE = 1e-4


class Component(NamedTuple):
    """A summand of a logit.

    Attributes:
        kind: ``embedding`` (the patches), ``position`` (of patches), ``cls_token``, ``register_token`` and
            ``distillation_token`` (with their positions, which cannot be told from them),
            ``embedding_norm_bias``, ``head``, ``attn`` (of TimeSformer, whose heads cannot be told apart),
            ``attn_bias``, ``mlp``, ``mlp_bias``, ``final_norm_bias`` or ``unembedding_bias``.
        layer: of the block; −1 for none.
        head: −1 for none.
    """

    kind: str
    layer: int = -1
    head: int = -1

    @property
    def name(self) -> str:
        """As ``head_3.1``, ``mlp_3`` or ``embedding``."""
        places = [str(place) for place in (self.layer, self.head) if place >= 0]
        return "_".join([self.kind, ".".join(places)] if places else [self.kind])


@dataclass(frozen=True)
class Attribution:
    """The components of a logit of every image.

    Attributes:
        logit: what the components sum to.
        components: along ``component``.
        contribution: what each adds to the logit.
        by_token: of that, what it adds through every token of the sequence; NaN where a component is of no
            token: the bias of the head, and that of a final norm that is not of all tokens.
    """

    logit: Float[Tensor, " image"]
    components: list[Component]
    contribution: Float[Tensor, "image component"]
    by_token: Float[Tensor, "image component token"]


def needed_sites(vit: HookedViT) -> list[str]:
    """Sites that an attribution reads."""
    of_attention = ["z"] if "z" in vit.sites else ["resid_pre", "resid_mid"]
    of_mlp = ["mlp_out"] if "mlp_out" in vit.sites else []
    return ["embed", "full_embed", *of_attention, *of_mlp, f"blocks.{vit.n_layers - 1}.hook_resid_post"]


def components_of(vit: HookedViT) -> list[Component]:
    """The components that the logits of a model have, in the order of a forward pass."""
    kinds = vit.token_coords()["token_kind"]
    tokens = [kind for kind in dict.fromkeys(kinds.tolist()) if kind != "patch"]
    found = [Component("embedding"), Component("position"), *(Component(f"{kind}_token") for kind in tokens)]
    found += [Component("embedding_norm_bias")] if vit.pre_norm is not None else []
    for layer in range(vit.n_layers):
        if "z" in vit.sites:
            found += [Component("head", layer, head) for head in range(vit.n_heads)]
            found += [Component("attn_bias", layer)]
        else:
            found += [Component("attn", layer)]
        if "mlp_out" in vit.sites:
            found += [Component("mlp", layer), Component("mlp_bias", layer)]
    found += [Component("final_norm_bias")] if vit.final_norm is not None else []
    return [*found, Component("unembedding_bias")]


@torch.no_grad()
def attribute(
    vit: HookedViT,
    pixels: Float[Tensor, "image *frame channel row column"],
    plus: Int[Tensor, " image"],
    minus: Int[Tensor, " image"] | None = None,
) -> Attribution:
    """Take apart the logit of class ``plus`` of every image (less that of class ``minus``).

    Sums are in float64.

    Raises:
        StepError: when the final norm is no LayerNorm, or when the components do not sum to the logit because
            the head is no linear map of the normed stream (a pooling that attends).
    """
    cache, embedded = _run(vit, pixels)
    readout = read_out(vit, cache["resid_post", vit.n_layers - 1], plus, minus)
    direction = readout.direction.double()
    parts = [*_of_embedding(vit, cache, embedded, direction), *_of_blocks(vit, cache, direction)]
    parts += [readout.norm_bias] if vit.final_norm is not None else []
    parts += [readout.head_bias[:, None]]
    contribution = torch.stack([part.sum(-1) for part in parts], dim=1)
    _check_sum(readout.value, contribution.sum(1))
    by_token = torch.stack([_along_tokens(part, direction.shape[1]) for part in parts], dim=1)
    return Attribution(readout.value, components_of(vit), contribution, by_token)


def _run(vit: HookedViT, pixels: Tensor) -> tuple[ActivationCache, Tensor | None]:
    """What is needed of a run, and what its ``pre_norm`` was given, where it has one."""
    given: list[Tensor] = []
    with ExitStack() as stack:
        if vit.pre_norm is not None:
            handle = vit.pre_norm.register_forward_pre_hook(lambda _module, args: given.append(args[0]))
            stack.callback(handle.remove)
        cache = vit.read(pixels, needed_sites(vit))
    return cache, given[0] if given else None


def _of_embedding(
    vit: HookedViT, cache: ActivationCache, embedded: Tensor | None, direction: Tensor
) -> list[Float[Tensor, "image token"]]:
    """Through every token: the patches, their positions, each kind of other token, the norm's bias."""
    kinds = vit.token_coords()["token_kind"]
    stream, patches = cache["full_embed", None].double(), torch.zeros_like(direction)
    patches[:, kinds == "patch"] = cache["embed", None].double()
    if vit.pre_norm is not None and embedded is not None:
        norm, embedded = vit.pre_norm, embedded.double()
        patches = with_scale_of(norm, patches, embedded)
        bias = norm.get_parameter("bias").double()
        last = [direction @ bias]
    else:
        bias, last = torch.zeros((), dtype=torch.float64, device=direction.device), []
    of_patches = (patches * direction).sum(-1)
    rest = ((stream - bias - patches) * direction).sum(-1)
    names = dict.fromkeys(["patch", *kinds.tolist()])
    return [of_patches, *(rest * torch.from_numpy(kinds == name).to(rest) for name in names), *last]


def _of_blocks(
    vit: HookedViT, cache: ActivationCache, direction: Tensor
) -> Iterator[Float[Tensor, "image token"]]:
    """What every block writes, through every token."""
    read = direction.abs().amax((0, 2)).nonzero().flatten()  # a head on CLS reads one token alone
    for layer in range(vit.n_layers):
        for part in _of_block(vit, cache, layer, read, direction[:, read]):
            yield direction.new_zeros(direction.shape[:2]).index_copy(1, read, part)


def _of_block(
    vit: HookedViT, cache: ActivationCache, layer: int, read: Tensor, direction: Tensor
) -> Iterator[Float[Tensor, "image read_token"]]:
    def written(site: str) -> Tensor:
        return cache[site, layer][:, read].double()

    if "z" in vit.sites:
        scaled = direction * vit.layer_scale(layer, "attn")
        of_z = torch.einsum("itm,hdm->ithd", scaled, vit.weights["W_O", layer].double())
        yield from (written("z") * of_z).sum(-1).unbind(-1)
        yield scaled @ vit.weights["b_O", layer].double()
    else:
        yield ((written("resid_mid") - written("resid_pre")) * direction).sum(-1)
    if "mlp_out" in vit.sites:
        bias = vit.weights["b_out", layer].double() * vit.layer_scale(layer, "mlp")
        yield ((written("mlp_out") - bias) * direction).sum(-1)
        yield direction @ bias


def _along_tokens(part: Tensor, n_tokens: int) -> Float[Tensor, "image token"]:
    """A part through every token; NaN where it is of none."""
    return part if part.shape[1] == n_tokens else part.new_full((len(part), n_tokens), torch.nan)


def _check_sum(logit: Float[Tensor, " image"], total: Float[Tensor, " image"]) -> None:
    off = (total - logit.double()).abs() / logit.double().abs().clamp(min=1)
    if not bool((off <= TOLERANCE).all()):
        worst = int(off.nan_to_num(torch.inf).argmax())
        raise StepError(
            f"a logit is {logit[worst].item():.6g}, and the sum of its components {total[worst].item():.6g}: "
            "the model's head is no linear map of the normed residual stream (it attends, as the pooling of "
            "SigLIP and V-JEPA 2 does), so its logits are no sum over components. Give the model a linear "
            "head: train_probe on the model without its own"
        )
