"""A model whose circuit is known, for its weights are set by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig

#: Patches lie row by row: 0 and 1 above, 2 and 3 below. The class is told by the last.
TOLD_BY = 3

#: Every edge that carries it: head 0.1 copies the patch to CLS's neighbour, head 1.0 from there to CLS.
CIRCUIT = {
    ("embed", "head 0.1.v"),
    ("head 0.1", "head 1.0.v"),
    ("head 1.0", "logits"),
}

CONFIG = ToyViTConfig(
    n_layers=2,
    d_model=12,
    n_heads=2,
    d_mlp=1,
    patch_size=2,
    image_size=4,
    n_channels=1,
    n_classes=2,
    attention_only=True,
    layer_norm=False,
)

# Coordinates of the stream: the patch's value, its two copies, and a mark of each position.
_VALUE, _COPIED, _ANSWER, _PLACES = 0, 1, 2, range(3, 8)


def planted_vit() -> ToyViT:
    """A toy ViT that answers 1 where the last patch is bright, 0 where it is dark.

    Head 0.1 of patch 0 attends to the last patch and copies its value into a coordinate of patch 0; head 1.0
    of CLS attends to patch 0 and copies that to CLS, where the head reads it. They attend by positions
    alone. The other heads attend evenly and write nothing.
    """
    model = ToyViT(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embeddings.patch.weight[_VALUE] = 1 / 4
        for token, place in enumerate(_PLACES):
            model.embeddings.positions[token, place] = 1
        _set_head(model, 0, 1, asks=1, answers=TOLD_BY + 1, copies=(_VALUE, _COPIED))
        _set_head(model, 1, 0, asks=0, answers=1, copies=(_COPIED, _ANSWER))
        model.head.weight[:, _ANSWER] = torch.tensor([-1.0, 1.0])
        model.head.bias[:] = torch.tensor([0.5, -0.5])
    return model.eval()


def _set_head(model: ToyViT, layer: int, head: int, asks: int, answers: int, copies: tuple[int, int]) -> None:
    """Have token ``asks`` attend to token ``answers``, and a head copy one coordinate into another."""
    attention = model.blocks[layer].attention
    first = head * (CONFIG.d_model // CONFIG.n_heads)
    attention.q_proj.weight[first, _PLACES[asks]] = 100
    attention.k_proj.weight[first, _PLACES[answers]] = 1
    attention.v_proj.weight[first, copies[0]] = 1
    attention.o_proj.weight[copies[1], first] = 1


def planted_pixels(told: Tensor, generator: torch.Generator) -> Tensor:
    """Images [image, 1, 4, 4] of random patches, of which the last is bright (1) or dark (0) as told."""
    pixels = torch.rand((len(told), 1, 4, 4), generator=generator)
    pixels[:, :, 2:, 2:] = told.view(-1, 1, 1, 1)
    return pixels
