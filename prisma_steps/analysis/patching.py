"""Activation patching (Wang et al. 2022, arXiv 2211.00593, section 3; the sweeps of TransformerLens).

A cell of a sweep is one run of the target image in which a site of one layer, at one token, a set of them or
one head, is that of the source image. Denoising takes the clean image as source and the corrupted one as
target and shows what suffices for the clean answer; noising swaps them and shows what is necessary for it.

No cell computes what patching does not change. Whatever site is patched, all that follows from it is in the
residual stream at its next place: a cell is the target's stream there with what the patch changes of it, and
the run starts there. The runs of a layer go through the rest of the model in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prisma_steps.analysis.head_patching import HEAD_SITES, head_change
from prisma_steps.models.fast_inference import matmul
from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.suffix import Suffix

#: Sites that are patched at one token at a time, and where in the stream all that follows from them is.
TOKEN_SITES: Mapping[str, str] = {
    "resid_pre": "resid_pre",
    "resid_mid": "resid_mid",
    "resid_post": "resid_post",
    "attn_out": "resid_mid",
    "mlp_out": "resid_post",
}

#: Metrics of the logits [cell, class] of runs of the pairs [cell].
Measure: TypeAlias = Callable[
    [Float[Tensor, "cell class"], Int[Tensor, " cell"]], Mapping[str, Float[Tensor, " cell"]]
]


@dataclass(frozen=True)
class Sweep:
    """Which cells there are.

    Attributes:
        sites: what is patched, one after the other: all of ``TOKEN_SITES`` or all of ``HEAD_SITES``.
        layers: blocks that are patched, one at a time.
        tokens: positions that are patched, one at a time (of ``pattern`` the token that attends).
        each_token: patch heads at one token at a time; else all tokens of a head together.
        memory: bytes that the temporaries of a batch may take, about.
        groups: sets of positions; where there are some, sites of the stream are patched at all positions of
            one set at a time, in place of one of ``tokens``.
    """

    sites: Sequence[str]
    layers: Sequence[int]
    tokens: Sequence[int]
    each_token: bool = False
    memory: int = 2**27
    groups: Sequence[Sequence[int]] = ()


@dataclass(frozen=True)
class _Layer:
    """A layer of both runs: values of its sites.

    Attributes:
        number: which.
        source: of the images that are patched in.
        target: of the images that are patched.
    """

    number: int
    source: Mapping[str, Tensor]
    target: Mapping[str, Tensor]


@dataclass(frozen=True)
class _Cells:
    """The cells of one site of one layer.

    Attributes:
        shape: of the cells: pair, then token or group, head, or head and token.
        make: the stream in the cells of these numbers.
        run: what follows from it: logits.
    """

    shape: tuple[int, ...]
    make: Callable[[Int[Tensor, " cell"]], Float[Tensor, "cell token d_model"]]
    run: Callable[[Float[Tensor, "cell token d_model"]], Float[Tensor, "cell class"]]


@torch.no_grad()
def patch(
    model: HookedViT,
    source: Float[Tensor, "pair *frame channel row column"],
    target: Float[Tensor, "pair *frame channel row column"],
    measure: Measure,
    sweep: Sweep,
) -> Iterator[tuple[int, str, dict[str, Float[Tensor, "pair *cell"]]]]:
    """Every cell of a sweep: layer, site and metrics, layer by layer.

    Cells are [pair, token], or [pair, group], of sites of the stream; [pair, head] or [pair, head, token] of
    sites of heads.

    Args:
        model: a model in evaluation mode.
        source: images that are patched in, prepared.
        target: images that are patched, prepared.
        measure: what is kept of the logits.
        sweep: which cells.

    Raises:
        SiteError: for a site or layer that the model does not have.
    """
    model.site_keys(sweep.sites, sweep.layers)
    suffix = Suffix(model, source.shape[1:])
    for layer in _layers(model, source, target, sweep):
        for site in sweep.sites:
            cells = (_of_tokens if site in TOKEN_SITES else _of_heads)(suffix, layer, site, sweep)
            size = cells_per_batch(model, layer.target["resid_pre"].shape[1], site, sweep)
            yield layer.number, site, _measured(cells, measure, size, model.device)


def cells_per_batch(model: HookedViT, n_tokens: int, site: str, sweep: Sweep) -> int:
    """Cells whose temporaries take ``sweep.memory`` bytes, about; at least 1.

    They are the stream, its norm, queries, keys, values and what attention returns, the MLP's neurons before
    and after their activation, and where the keys of one token are patched three patterns.
    """
    patterns = 3 * n_tokens if site == "k" and sweep.each_token else 0
    of_token = 6 * model.d_model + 2 * model.d_mlp + patterns
    return max(sweep.memory // (n_tokens * of_token * model.dtype.itemsize), 1)


def pairs_per_block(model: HookedViT, n_tokens: int, sweep: Sweep) -> int:
    """Pairs of which what is held of a layer takes ``sweep.memory`` bytes, about; at least 1."""
    read = [name for of in _read_of_both(sweep.sites) for name in of]
    patterns = (
        sum(name in ("pattern", "attn_scores") for name in read) + 2 * ("q" in read) + 2 * ("k" in read)
    )
    streams = 4 + len(read)
    of_pair = n_tokens * (streams * model.d_model + patterns * model.n_heads * n_tokens)
    held = max(sweep.memory // (of_pair * model.dtype.itemsize), 1)
    return min(held, cells_per_batch(model, n_tokens, "resid_pre", sweep))


def _layers(model: HookedViT, source: Tensor, target: Tensor, sweep: Sweep) -> Iterator[_Layer]:
    """The layers of both runs that are patched; each block runs once for each."""
    shape = source.shape[1:]
    streams = [model.read(side, ["full_embed"])["full_embed", None] for side in (source, target)]
    for number in range(max(sweep.layers) + 1):
        sites = _read_of_both(sweep.sites) if number in sweep.layers else ((), ())
        values = [
            {"resid_pre": stream, **model.read_from(number, stream, [*of, "resid_post"], shape=shape)}
            for stream, of in zip(streams, sites, strict=True)
        ]
        if number in sweep.layers:
            yield _Layer(number, *values)
        streams = [of["resid_post"] for of in values]


def _read_of_both(sites: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is read of the source's and of the target's run."""
    beside = {site: (where,) for site, where in TOKEN_SITES.items()} | dict(HEAD_SITES)
    of_target = dict.fromkeys(name for site in sites for name in (site, *beside[site]))
    carried = ("resid_pre", "resid_post")
    return [site for site in sites if site not in carried], [
        name for name in of_target if name not in carried
    ]


def _of_tokens(suffix: Suffix, layer: _Layer, site: str, sweep: Sweep) -> _Cells:
    where = TOKEN_SITES[site]
    stream = layer.target[where]
    # To the bit the source's where the site is the stream itself.
    changed = layer.source[site] if site == where else stream + (layer.source[site] - layer.target[site])
    groups = _padded(sweep.groups or [[token] for token in sweep.tokens]).to(stream.device)
    shape = (len(stream), len(groups))

    def make(cell: Tensor) -> Tensor:
        pair, at = torch.unravel_index(cell, shape)
        patched, tokens = stream[pair], groups[at]
        patched[torch.arange(len(cell), device=cell.device)[:, None], tokens] = changed[pair[:, None], tokens]
        return patched

    return _Cells(shape, make, _from(suffix, layer.number, where))


def _padded(groups: Sequence[Sequence[int]]) -> Int[Tensor, "group place"]:
    """Sets of positions as rows of one length: writing a position twice is writing it once."""
    longest = max(map(len, groups))
    return torch.tensor([[*group, *[group[0]] * (longest - len(group))] for group in groups])


def _of_heads(suffix: Suffix, layer: _Layer, site: str, sweep: Sweep) -> _Cells:
    model, stream = suffix.model, layer.target["resid_mid"]
    change = head_change(model, layer.number, site, layer.source, layer.target, suffix.shape)
    weight, scale = model.weights["W_O", layer.number], model.layer_scale(layer.number, "attn")
    shape = (len(stream), model.n_heads, *([len(sweep.tokens)] if sweep.each_token else []))
    tokens = torch.tensor(sweep.tokens, device=stream.device)

    def make(cell: Tensor) -> Tensor:
        pair, head, *at = torch.unravel_index(cell, shape)
        z = change.of_token(pair, head, tokens[at[0]]) if at else change.of_head(pair, head)
        return stream[pair] + matmul(z, weight[head]) * scale

    return _Cells(shape, make, _from(suffix, layer.number, "resid_mid"))


def _from(suffix: Suffix, layer: int, where: str) -> Callable[[Tensor], Tensor]:
    """The rest of the model from a place in the stream on."""
    if where == "resid_mid":
        return partial(suffix.from_mid, layer)
    return partial(suffix.from_pre, layer if where == "resid_pre" else layer + 1)


def _measured(
    cells: _Cells, measure: Measure, size: int, device: torch.device
) -> dict[str, Float[Tensor, "pair *cell"]]:
    """Metrics of every cell, run in batches of ``size``."""
    count, of_pair = prod(cells.shape), prod(cells.shape[1:])
    found: dict[str, list[Tensor]] = {}
    for first in range(0, count, size):
        cell = torch.arange(first, min(first + size, count), device=device)
        values = measure(cells.run(cells.make(cell)), cell // of_pair)
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: torch.cat(values).view(cells.shape) for name, values in found.items()}
