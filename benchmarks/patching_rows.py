"""What ``benchmarks.patching`` times: every way to sweep, in a process of its own.

``python -m benchmarks.patching_rows ROW SWEEP`` says "ready". For each file named on its input it goes
through the sweep, writes the effects [pair, layer, place] there, and says "done".
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.extract_rows import random_model

N_LAYERS, N_TOKENS, N_HEADS, D_HEAD = 12, 50, 12, 64


@dataclass(frozen=True)
class Cells:
    """Which cells a sweep has.

    Attributes:
        site: ``resid_pre`` or ``z``.
        n_pairs: pairs of images.
        places: tokens of ``resid_pre``, heads of ``z``.
    """

    site: str
    n_pairs: int
    places: tuple[int, ...]


SWEEPS = {
    "one pair, tokens": Cells("resid_pre", 1, tuple(range(N_TOKENS))),
    "8 pairs, 8 tokens": Cells("resid_pre", 8, tuple(range(0, N_TOKENS, 7))),
    "one pair, heads": Cells("z", 1, tuple(range(N_HEADS))),
}

Sweep = Callable[[Cells], Tensor]


def pixels(n_pairs: int) -> tuple[Tensor, Tensor]:
    """The two images of every pair."""
    return tuple(torch.randn(2, n_pairs, 3, 224, 224, generator=torch.Generator().manual_seed(1)))


def effect(output: Tensor) -> Tensor:
    """The metric: a difference of two outputs of CLS, as that of two logits."""
    return output[..., 0] - output[..., 1]


# --- others: one forward pass a cell


def naive() -> Sweep:
    """Hooks of PyTorch on a model of ``transformers``."""
    model = random_model("CLIP-B/32").requires_grad_(False)

    def run(cells: Cells) -> Tensor:
        source, target = pixels(cells.n_pairs)
        found = torch.zeros(cells.n_pairs, N_LAYERS, len(cells.places))
        for pair in range(cells.n_pairs):
            clean = _inputs(model, cells.site, source[pair, None])
            for layer in range(N_LAYERS):
                for at, place in enumerate(cells.places):
                    where = _slice(cells.site, place)

                    def write(_: Any, args: tuple[Tensor, ...], where=where, put=clean[layer]) -> Any:
                        value = args[0].clone()
                        value[where] = put[where]
                        return (value, *args[1:])

                    hook = _module(model, cells.site, layer).register_forward_pre_hook(write)
                    found[pair, layer, at] = effect(model(target[pair, None]).pooler_output[0])
                    hook.remove()
        return found

    return torch.no_grad()(run)


def _slice(site: str, place: int) -> Any:
    every = slice(None)
    return (
        (every, place) if site == "resid_pre" else (every, every, slice(place * D_HEAD, (place + 1) * D_HEAD))
    )


def _module(model: Any, site: str, layer: int) -> Any:
    block = model.encoder.layers[layer]
    return block if site == "resid_pre" else block.self_attn.out_proj


def _inputs(model: Any, site: str, image: Tensor) -> list[Tensor]:
    """What the module of every layer is given."""
    found: list[Tensor] = []
    hooks = [
        _module(model, site, layer).register_forward_pre_hook(lambda _, args: found.append(args[0]))
        for layer in range(N_LAYERS)
    ]
    model(image)
    for hook in hooks:
        hook.remove()
    return found


def nnsight() -> Sweep:
    """The same by traces of nnsight."""
    from nnsight import NNsight

    plain = random_model("CLIP-B/32").requires_grad_(False)
    model = NNsight(plain)

    def run(cells: Cells) -> Tensor:
        source, target = pixels(cells.n_pairs)
        found = torch.zeros(cells.n_pairs, N_LAYERS, len(cells.places))
        for pair in range(cells.n_pairs):
            clean = _inputs(plain, cells.site, source[pair, None])
            for layer in range(N_LAYERS):
                for at, place in enumerate(cells.places):
                    where, put = _slice(cells.site, place), clean[layer]
                    module = _module(model, cells.site, layer)
                    with model.trace(target[pair, None]):
                        value = module.input.clone()
                        value[where] = put[where]
                        module.input = value
                        output = model.output.pooler_output.save()
                    found[pair, layer, at] = effect(output[0])
        return found

    return torch.no_grad()(run)


# --- ours


def ours(dtype: Any) -> Sweep:
    """The kernel of the step ``patch_activations``."""
    from prisma_steps.analysis import patching
    from prisma_steps.memory import reused_memory
    from prisma_steps.models.hooked import HookedViT

    model = HookedViT(random_model("CLIP-B/32").requires_grad_(False)).for_inference(dtype)

    def run(cells: Cells) -> Tensor:
        source, target = (side.to(model.dtype) for side in pixels(cells.n_pairs))
        tokens = cells.places if cells.site == "resid_pre" else range(N_TOKENS)
        sweep = patching.Sweep([cells.site], range(N_LAYERS), tokens)
        with reused_memory():
            found = [
                values["effect"]
                for _, _, values in patching.patch(
                    model, source, target, lambda output, _: {"effect": effect(output.float())}, sweep
                )
            ]
        return torch.stack(found, dim=1)

    return run


ROWS: dict[str, Callable[[], Sweep]] = {
    "naive": naive,
    "nnsight": nnsight,
    "float32": lambda: ours("float32"),
    "bfloat16": lambda: ours("bfloat16"),
}

if __name__ == "__main__":
    row, name = sys.argv[1:]
    chosen, sweep = SWEEPS[name], ROWS[row]()
    sweep(Cells(chosen.site, 1, (0,)))
    print("ready", flush=True)
    for line in sys.stdin:
        np.save(line.strip(), sweep(chosen).numpy())
        print("done", flush=True)
