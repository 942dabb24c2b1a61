"""Attribution patching of all edges, beside a forward and backward pass of the same batch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.timing import interleaved, report

if TYPE_CHECKING:
    from torch import Tensor

#: How many forward and backward passes the scores of all edges may take.
LIMIT = 3.0
N_PAIRS = 8
ROUNDS = 5


def benchmark() -> bool:
    """Run both, of the shape of CLIP-B/32, in turn; False when the limit is missed."""
    import torch

    from prisma_steps.analysis.circuits.gradients import edge_attribution
    from prisma_steps.analysis.metrics import logit_difference
    from prisma_steps.memory import reused_memory
    from prisma_steps.models.hooked import HookedViT

    plain = _random_classifier()
    clean, corrupted = torch.randn(2, N_PAIRS, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    metric = logit_difference(torch.tensor([[0, 1]] * N_PAIRS))
    edges = partial(edge_attribution, HookedViT(plain), clean, corrupted, metric)
    with reused_memory():  # for both
        times = interleaved(
            {"pass": partial(_forward_and_backward, plain, clean, metric), "edges": edges}, ROUNDS
        )
    scores = edges()
    what = f"EAP of {int((scores != 0).sum())} edges, {N_PAIRS} pairs / forward and backward"
    return report(what, times["edges"], times["pass"], LIMIT)


def _random_classifier() -> Any:
    """A CLIP vision model with a head of random weights: speed does not depend on them."""
    import torch
    from transformers import CLIPConfig, CLIPForImageClassification

    from benchmarks.extract_rows import SHAPES

    torch.manual_seed(0)
    vision = {**SHAPES["CLIP-B/32"], "patch_size": 32, "image_size": 224}
    config = CLIPConfig(vision_config=vision, num_labels=1000)
    return CLIPForImageClassification(config).eval().requires_grad_(False)


def _forward_and_backward(model: Any, pixels: Tensor, metric: Any) -> Tensor:
    """The gradient of the metric by the pixels: without those of weights, which nobody asks for."""
    import torch

    pixels = pixels.clone().requires_grad_()
    return torch.autograd.grad(metric(model(pixels).logits).sum(), pixels)[0]
