"""From sites to ports: which modules of a model a site is read and written at, and hooks put there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from prisma_steps.models.attention import watching
from prisma_steps.models.families import find
from prisma_steps.models.ports import (
    AS_IT_IS,
    CONVOLVED,
    ONE_TOKEN,
    AddedPort,
    InputPort,
    OutputPort,
    Port,
    ResidMidPort,
    ResultPort,
    SlicePort,
    frame_by_frame,
    in_heads,
)
from prisma_steps.models.sites import ORDER, Hooks, Tap, checked
from prisma_steps.models.structure import Structure

#: Sites inside the attention function: their way in is the function, not a module.
_IN_ATTENTION = ("attn_scores", "pattern")


@contextmanager
def attached(model: Structure, hooks: Hooks) -> Iterator[None]:
    """Keep hooks on the modules of a model, in the order of a forward pass, while the context lasts."""
    in_order = sorted(hooks, key=lambda key: (-1 if key[1] is None else key[1], ORDER[key[0]]))
    in_attention: dict[nn.Module, dict[str, Tap]] = {}
    with ExitStack() as stack:
        for site, layer in in_order:
            tap = checked(hooks[site, layer], (site, layer))
            if layer is not None and site in _IN_ATTENTION:
                in_attention.setdefault(model.part(layer, "attention"), {})[site] = tap
                continue
            for handle in _port(model, site, layer).attach(tap):
                stack.callback(handle.remove)
        if in_attention:
            stack.enter_context(watching(in_attention))
        yield


def _port(model: Structure, site: str, layer: int | None) -> Port:
    if layer is None:
        return _outer_port(model, site)
    block, part, heads = model.blocks[layer], lambda name: model.part(layer, name), in_heads(model.n_heads)
    before_mlp = find(block, model.family.block.ln2)
    if site in ("q", "k", "v"):
        fused = part("qkv")
        return (
            OutputPort(part(site), heads)
            if fused is None
            else SlicePort(fused, "qkv".index(site), model.n_heads)
        )
    simple: dict[str, Callable[[], Port]] = {
        "resid_pre": lambda: InputPort(block),
        "ln1_out": lambda: OutputPort(part("ln1")),
        "z": lambda: InputPort(part("o"), heads),
        "result": lambda: ResultPort(part("o"), model.n_heads),
        "attn_out": lambda: _added(model, layer, "attn", () if before_mlp is None else (before_mlp,)),
        "resid_mid": lambda: OutputPort(block) if before_mlp is None else ResidMidPort(before_mlp, block),
        "ln2_out": lambda: OutputPort(part("ln2")),
        "mlp_pre": lambda: OutputPort(part("mlp_gate") or part("mlp_in")),
        "mlp_post": lambda: InputPort(part("mlp_out")),
        "mlp_out": lambda: _added(model, layer, "mlp", ()),
        "resid_post": lambda: OutputPort(block),
    }
    return simple[site]()


def _added(model: Structure, layer: int, which: str, readers: tuple[nn.Module, ...]) -> Port:
    """What attention or MLP adds to the stream."""
    block = model.blocks[layer]
    module = find(block, getattr(model.family.block, f"{which}_write"))
    scale = model.part(layer, f"{which}_scale")
    return AddedPort(module, scale, readers, block) if isinstance(scale, Tensor) else OutputPort(module)


def _outer_port(model: Structure, site: str) -> Port:
    if site == "embed":
        frames = None if model.family.frames_first else model.input_shape[0]
        layout = CONVOLVED if frames is None else frame_by_frame(frames)
        return OutputPort(find(model.trunk, model.family.embed), layout)
    if site == "full_embed":
        return InputPort(model.blocks[0])
    norm, scope = model.final_norm, model.norm_scope
    assert site == "ln_final" and norm is not None, site
    return OutputPort(norm, AS_IT_IS if scope == "all" else ONE_TOKEN)
