"""Circuits the slow way: one edge at a time, with plain hooks, or node by node as the formulas say."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from prisma_steps.analysis.circuits.graph import Graph
from prisma_steps.models.hooked import HookedViT


def naive_writes(model: HookedViT, pixels: Tensor) -> dict[str, Tensor]:
    """What every source writes, seen by plain hooks on the modules."""
    found: dict[str, Tensor] = {}
    table = model.family.block

    def modules(block: torch.nn.Module, path: str) -> torch.nn.Module:
        return block.get_submodule(path.split("|")[0])

    with ExitStack() as stack:

        def watch(handle) -> None:
            stack.callback(handle.remove)

        watch(model.blocks[0].register_forward_pre_hook(lambda _m, args: found.__setitem__("embed", args[0])))
        for layer, block in enumerate(model.blocks):
            scale = getattr(block, "layer_scale1", None)

            def heads(module, args, layer=layer, scale=scale) -> None:
                size = model.d_head
                for head in range(model.n_heads):
                    where = slice(head * size, (head + 1) * size)
                    write = F.linear(args[0][..., where], module.weight[:, where])
                    found[f"head {layer}.{head}"] = write if scale is None else write * scale.lambda1

            watch(modules(block, table.o).register_forward_pre_hook(heads))
            if getattr(block, "mlp", None) is not None:
                written = modules(block, table.mlp_write)
                watch(
                    written.register_forward_hook(
                        lambda _m, _a, out, n=layer: found.update({f"mlp {n}": out})
                    )
                )
        model(pixels)
    return found


def naive_edge(model: HookedViT, pixels: Tensor, target: str, change: Tensor) -> Tensor:
    """Logits of one run in which the read of one target has ``change`` added."""
    if target == "logits":
        handle = model.blocks[-1].register_forward_hook(
            lambda _m, _a, out: (out[0] + change, *out[1:]) if isinstance(out, tuple) else out + change
        )
        handles = [handle]
    elif target.startswith("mlp"):
        block, table = model.blocks[int(target.split()[1])], model.family.block
        norm = block.get_submodule(table.ln2)
        handles = [norm.register_forward_pre_hook(lambda _m, args: (args[0] + change,))]
    else:
        handles = _head_hooks(model, target, change)
    try:
        return model(pixels)
    finally:
        for handle in handles:
            handle.remove()


def _head_hooks(model: HookedViT, target: str, change: Tensor) -> list:
    place, name = target.removeprefix("head ").rsplit(".", 1)
    layer, head = map(int, place.split("."))
    block, table = model.blocks[layer], model.family.block
    norm, projection = block.get_submodule(table.ln1), block.get_submodule(getattr(table, name))
    where = slice(head * model.d_head, (head + 1) * model.d_head)
    seen: list[Tensor] = []

    def patch(module, _args, out: Tensor) -> Tensor:
        normed = norm.forward(seen[0] + change)
        patched = out.clone()
        patched[..., where] = F.linear(normed, module.weight, module.bias)[..., where]
        return patched

    return [
        block.register_forward_pre_hook(lambda _m, args: seen.append(args[0])),
        projection.register_forward_hook(patch),
    ]


def naive_scores(
    model: HookedViT, graph: Graph, clean: Tensor, corrupted: Tensor, metric: Callable[[Tensor], Tensor]
) -> np.ndarray:
    """Path patching by a loop over edges, summed over pairs; 0 where there is no edge."""
    before, after, base = naive_writes(model, clean), naive_writes(model, corrupted), metric(model(clean))
    scores = np.zeros(graph.edges.shape)
    for source, target in zip(*graph.edges.nonzero(), strict=True):
        name = graph.sources[source]
        logits = naive_edge(model, clean, graph.targets[target], after[name] - before[name])
        scores[source, target] = float((metric(logits) - base).sum())
    return scores


def naive_circuit(
    model: HookedViT, graph: Graph, circuit: np.ndarray, pixels: Tensor, ablated: dict[str, Tensor]
) -> Tensor:
    """Logits of a toy ViT whose every read is the sum, one by one, of what its edges carry, plus biases."""
    toy = model.model
    writes: dict[str, Tensor] = {}

    def read(target: str, n_biases: int) -> Tensor:
        column = graph.targets.index(target)
        parts = [
            writes[name] if circuit[row, column] else ablated[name]
            for row, name in enumerate(graph.sources)
            if graph.edges[row, column]
        ]
        biases = [block.attention.o_proj.bias for block in toy.blocks[:n_biases]]
        return sum(parts) + sum(biases)

    writes["embed"] = toy.embeddings(pixels)
    for layer, block in enumerate(toy.blocks):
        for head in range(model.n_heads):
            writes[f"head {layer}.{head}"] = _naive_head(
                model, block, head, *(read(f"head {layer}.{head}.{name}", layer) for name in "qkv")
            )
        if block.mlp is not None:
            writes[f"mlp {layer}"] = block.mlp(block.ln2(read(f"mlp {layer}", layer + 1)))
    return toy.head(toy.ln_final(read("logits", len(toy.blocks)))[:, 0])


def _naive_head(model: HookedViT, block, head: int, *reads: Tensor) -> Tensor:
    where = slice(head * model.d_head, (head + 1) * model.d_head)
    attention = block.attention
    q, k, v = (
        F.linear(block.ln1(read), projection.weight[where], projection.bias[where])
        for read, projection in zip(
            reads, (attention.q_proj, attention.k_proj, attention.v_proj), strict=True
        )
    )
    pattern = (q @ k.mT / model.d_head**0.5).softmax(-1)
    return F.linear(pattern @ v, attention.o_proj.weight[:, where])
