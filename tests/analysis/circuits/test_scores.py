from __future__ import annotations

import numpy as np
import pytest
import torch

from prisma_steps.analysis.circuits.exact import exact_scores
from prisma_steps.analysis.circuits.gradients import edge_attribution
from prisma_steps.analysis.circuits.graph import Graph
from prisma_steps.analysis.circuits.split import graph_of, writes_of
from prisma_steps.analysis.metrics import kl_to, logit_difference
from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.step import StepError
from tests.analysis.circuits.naive import naive_scores, naive_writes
from tests.models.families import TOY, frozen, pixels_for

CLASSES = torch.tensor([[0, 1], [4, 2]])

# Float64: sums in another order, of numbers of about 1.
CLOSE = {"rtol": 1e-9, "atol": 1e-10}

MODELS = [
    "toy",
    "toy attention-only",
    "toy without LayerNorm",
    "toy bare",
    "vit",
    "clip classifier",
    "dinov2",
]

#: Families of which the plain hooks of ``naive.py`` know nothing.
OTHERS = [
    "toy mean, registers",
    "toy video",
    "beit",
    "siglip",
    "dinov2_with_registers",
    "videomae",
    "vivit",
    "vjepa2",
    "timm",
    "timm mean of patches, QK-norm",
]


def sides(model: HookedViT) -> tuple[torch.Tensor, torch.Tensor]:
    return pixels_for(model, 2, seed=3), pixels_for(model, 2, seed=4)


@pytest.mark.parametrize("name", MODELS)
def test_every_exact_score_is_one_hooked_forward(name: str) -> None:
    model = frozen(name)
    clean, corrupted = sides(model)
    metric = logit_difference(CLASSES)
    found = exact_scores(model, clean, corrupted, metric, runs_at_once=7)
    expected = naive_scores(model, graph_of(model), clean, corrupted, metric)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found.numpy(), expected, **CLOSE)


@pytest.mark.parametrize("name", MODELS)
def test_writes_are_what_plain_hooks_see(name: str) -> None:
    model = frozen(name)
    pixels = pixels_for(model)
    logits, writes = writes_of(model, pixels)
    expected = naive_writes(model, pixels)
    torch.testing.assert_close(logits, model(pixels), **CLOSE)
    for source, found in zip(graph_of(model).sources, writes, strict=True):
        torch.testing.assert_close(found, expected[source], **CLOSE)


@pytest.mark.parametrize("name", [*MODELS, *OTHERS])
def test_attribution_is_the_derivative_of_exact_scores(name: str) -> None:
    """Exact scores of a corruption that shrinks tend to those of attribution: both ways, of every family."""
    model = frozen(name)
    clean, corrupted = sides(model)
    metric = logit_difference(CLASSES)
    # Of images that near, writes are linear in the pixels but for 1e-5 of their change, and so is the rest.
    near = clean + 1e-5 * (corrupted - clean)
    exact = exact_scores(model, clean, near, metric, runs_at_once=64)
    found = edge_attribution(model, clean, near, metric)
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))


@pytest.mark.parametrize("name", ["toy", "vit", "clip classifier", "dinov2", "timm"])
def test_edges_of_the_embedding_sum_to_the_total_effect(name: str) -> None:
    """What integrated gradients are complete for: all that changes enters by the embedding's edges."""
    model = frozen(name)
    clean, corrupted = sides(model)
    metric = logit_difference(CLASSES)
    total = float((metric(model(corrupted)) - metric(model(clean))).sum())
    errors = [
        abs(float(edge_attribution(model, clean, corrupted, metric, steps)[0].sum()) - total)
        for steps in (4, 16, 64)
    ]
    assert errors[2] < 1e-3 * abs(total)
    assert errors[1] < errors[0] / 4  # steps², but for higher orders
    assert errors[2] < errors[1] / 8


def test_attribution_comes_near_exact_scores(capsys: pytest.CaptureFixture[str]) -> None:
    """Over all edges, where several paths interact: near, and nearer than at the clean run alone."""
    model = frozen("toy")
    clean, corrupted = sides(model)
    metric = logit_difference(CLASSES)
    exact = exact_scores(model, clean, corrupted, metric, runs_at_once=64)
    edges = torch.from_numpy(graph_of(model).edges)
    told = {}
    for steps in (0, 1, 2, 5, 20, 80):
        found = edge_attribution(model, clean, corrupted, metric, steps)
        told[steps] = float(torch.corrcoef(torch.stack([found[edges], exact[edges]]))[0, 1])
    with capsys.disabled():
        print("\ncorrelation with exact scores:", {k: round(v, 4) for k, v in told.items()})  # noqa: T201
    assert told[80] > max(0.97, told[0] + 0.05)
    assert abs(told[80] - told[20]) < 1e-3


def test_attribution_converges_to_the_exact_score_of_an_only_path() -> None:
    """Embedding, MLP 0, logits, without norms: the line of embeddings is that of the MLP's read."""
    generator = torch.Generator().manual_seed(0)
    toy = ToyViT.initialised(ToyViTConfig(**{**TOY, "layer_norm": False, "pooling": "mean"}), generator)
    model = HookedViT(toy.double().requires_grad_(False))
    for block in toy.blocks:
        block.attention.o_proj.weight.zero_()
    toy.blocks[1].mlp.fc2.weight.zero_()
    toy.blocks[0].mlp.fc1.weight.mul_(3)  # into the bends of GELU
    clean, corrupted = sides(model)
    metric = logit_difference(CLASSES)
    exact = exact_scores(model, clean, corrupted, metric, runs_at_once=64)
    column = graph_of(model).targets.index("mlp 0")
    scores = [
        edge_attribution(model, clean, corrupted, metric, steps)[0, column] for steps in (0, 1, 4, 16, 64)
    ]
    errors = [abs(float(score - exact[0, column])) for score in scores]
    assert errors[0] > 1e-2 * abs(float(exact[0, column]))
    assert errors[4] < 1e-4 * abs(float(exact[0, column]))
    assert all(later < earlier / 4 for earlier, later in zip(errors[1:], errors[2:], strict=False))


def test_attribution_is_exact_where_all_is_linear() -> None:
    """Value paths alone: without MLPs and norms, and with attention that does not look at its queries."""
    model = frozen("toy bare")
    for block in model.blocks:
        block.attention.q_proj.weight.zero_()
        block.attention.q_proj.bias.zero_()
    clean, corrupted = sides(model)
    metric = logit_difference(CLASSES)
    exact = exact_scores(model, clean, corrupted, metric, runs_at_once=64)
    assert (exact != 0).sum() > 10
    for steps in (0, 1, 3):
        found = edge_attribution(model, clean, corrupted, metric, steps)
        torch.testing.assert_close(found, exact, **CLOSE)


def test_attribution_runs_the_model_twice_and_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = frozen("toy")
    clean, corrupted = sides(model)
    counted = {"forward": 0, "backward": 0}
    model.blocks[0].attention.register_forward_pre_hook(
        lambda *_: counted.__setitem__("forward", counted["forward"] + 1)
    )
    grad = torch.autograd.grad

    def backward(outputs, inputs, *rest):
        counted["backward"] += isinstance(inputs, list)  # else through one norm
        return grad(outputs, inputs, *rest)

    monkeypatch.setattr(torch.autograd, "grad", backward)
    edge_attribution(model, clean, corrupted, logit_difference(CLASSES))
    assert counted == {"forward": 2, "backward": 1}


def test_batches_sum_to_the_whole() -> None:
    model = frozen("toy")
    clean, corrupted = sides(model)
    for scores in (
        lambda where: exact_scores(
            model, clean[where], corrupted[where], logit_difference(CLASSES[where]), 5
        ),
        lambda where: edge_attribution(
            model, clean[where], corrupted[where], logit_difference(CLASSES[where]), 3
        ),
    ):
        parts = scores(slice(0, 1)) + scores(slice(1, 2))
        torch.testing.assert_close(parts, scores(slice(None)), **CLOSE)


def test_an_image_as_its_own_counterpart_scores_nothing() -> None:
    model = frozen("toy")
    clean, _ = sides(model)
    metric = logit_difference(CLASSES)
    torch.testing.assert_close(
        exact_scores(model, clean, clean, metric, 64),
        torch.zeros(graph_of(model).edges.shape).double(),
        **CLOSE,
    )
    assert not edge_attribution(model, clean, clean, metric, 2).any()


def test_kl_is_that_of_torch_and_its_gradient_vanishes_at_the_clean_run() -> None:
    model = frozen("toy")
    clean, corrupted = sides(model)
    truth, other = model(clean), model(corrupted)
    metric = kl_to(truth)
    expected = torch.nn.functional.kl_div(
        other.log_softmax(-1), truth.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    torch.testing.assert_close(metric(other), expected, **CLOSE)
    assert float(edge_attribution(model, clean, corrupted, metric).abs().max()) < 1e-12
    assert float(edge_attribution(model, clean, corrupted, metric, 5).abs().max()) > 1e-4


def test_names_and_number_of_edges() -> None:
    graph = Graph(n_layers=2, n_heads=2, n_mlps=1)
    assert graph.sources == ["embed", "head 0.0", "head 0.1", "mlp 0", "head 1.0", "head 1.1", "mlp 1"]
    assert graph.targets[:7] == [*(f"head 0.{head}.{name}" for head in (0, 1) for name in "qkv"), "mlp 0"]
    assert graph.targets[-2:] == ["mlp 1", "logits"]
    # 6 + 3 into block 0, 6·4 + 6 into block 1, 7 into the logits
    assert graph.n_edges == 46
    for source, target in zip(*graph.edges.nonzero(), strict=True):
        reads, writes = graph.targets[target], graph.sources[source]
        if reads != "logits" and writes != "embed":
            assert int(writes.split()[1][0]) <= int(reads.split()[1][0])


def test_a_model_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(StepError, match="no site 'q'. TimeSformer attends twice"):
        graph_of(frozen("timesformer"))
    with pytest.raises(StepError, match="no classes"):
        graph_of(frozen("clip bare"))
