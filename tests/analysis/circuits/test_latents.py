from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from prisma_steps.analysis.circuits.latents import (
    Placed,
    State,
    latent_edges,
    latent_effects,
    run_latents,
    states_of,
)
from prisma_steps.analysis.metrics import logit_difference
from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.splicing import Splice
from prisma_steps.sae.autoencoder import Shape
from prisma_steps.step import StepError
from tests.models.families import frozen, pixels_for
from tests.sae.published import dictionary

CLASSES = torch.tensor([[0, 1], [4, 2]])
METRIC = logit_difference(CLASSES)
N_LATENTS = 30

# Float64: sums in another order, of numbers of about 1.
CLOSE = {"rtol": 1e-9, "atol": 1e-10}

AUTOENCODER = Shape(12, N_LATENTS)
TRANSCODER = Shape(12, N_LATENTS, d_target=12, subtract_b_dec=False)
KINDS = {
    "resid_post": (AUTOENCODER, "resid_post", "resid_post", "all"),
    "mlp_out": (AUTOENCODER, "mlp_out", "mlp_out", "all"),
    "transcoder": (TRANSCODER, "ln2_out", "mlp_out", "all"),
    "patches": (AUTOENCODER, "resid_mid", "resid_mid", "patch"),
}


def place(model: HookedViT, kind: str, layer: int, architecture: str = "relu") -> Placed:
    shape, reads, writes, tokens = KINDS[kind]
    sae = dictionary(architecture, shape).double()
    return Placed(model, Splice(sae, (reads, layer), (writes, layer), tokens))


def sides(model: HookedViT) -> tuple[torch.Tensor, torch.Tensor]:
    return pixels_for(model, 2, seed=3), pixels_for(model, 2, seed=4)


def mask(*left_out: int) -> torch.Tensor:
    kept = torch.ones(N_LATENTS + 1, dtype=torch.bool)
    kept[list(left_out)] = False
    return kept


NOTHING = torch.zeros(N_LATENTS + 1, dtype=torch.bool)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_and_empty_circuits(kind: str) -> None:
    model = frozen("toy")
    clean, corrupted = sides(model)
    placed = [place(model, kind, layer) for layer in (0, 1)]
    logits, _ = states_of(model, clean, placed)
    answer, ablated = states_of(model, corrupted, placed)
    torch.testing.assert_close(logits, model(clean), **CLOSE)
    torch.testing.assert_close(run_latents(model, clean, placed, [mask(), mask()], ablated), logits, **CLOSE)
    empty = run_latents(model, clean, placed, [NOTHING, NOTHING], ablated)
    assert torch.allclose(empty, answer) == (kind == "resid_post")
    assert not torch.allclose(empty, logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [0, 1])
def test_effects_sum_to_that_of_the_site(kind: str, layer: int) -> None:
    model = frozen("toy")
    clean, corrupted = sides(model)
    placed = place(model, kind, layer)
    before, after = (states_of(model, pixels, [placed])[1][0] for pixels in (clean, corrupted))
    patched = run_latents(model, clean, [placed], [NOTHING], [after])
    total = float((METRIC(patched) - METRIC(model(clean))).sum())
    errors = []
    for steps in (4, 16, 64):
        latents, error = latent_effects(placed, clean, before, after, METRIC, steps)
        errors.append(abs(float(latents.sum() + error) - total))
    if (kind, layer) == ("patches", 1):
        assert total == 0  # the head reads CLS
    # steps² until rounding, in the norms' bends
    assert errors[-1] <= 1e-3 * abs(total)
    assert all(later < earlier / 4 or later < 1e-9 for earlier, later in pairwise(errors))


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("architecture", ["relu", "topk"])
def test_effects_are_exact_where_all_behind_is_linear(steps: int, architecture: str) -> None:
    """Before the head of a model without norms; each by a run of its own."""
    model = frozen("toy without LayerNorm")
    clean, corrupted = sides(model)
    placed = place(model, "resid_post", 1, architecture)
    before, after = (states_of(model, pixels, [placed])[1][0] for pixels in (clean, corrupted))
    latents, error = latent_effects(placed, clean, before, after, METRIC, steps)
    found = torch.cat([latents, error.view(1)])
    base = METRIC(model(clean))
    expected = [
        (METRIC(run_latents(model, clean, [placed], [mask(node)], [after])) - base).sum()
        for node in range(N_LATENTS + 1)
    ]
    assert (found != 0).sum() > 3
    torch.testing.assert_close(found, torch.stack(expected), **CLOSE)


def test_edges_sum_to_effects_where_all_goes_through_the_later_dictionary() -> None:
    model = frozen("toy")
    clean, corrupted = sides(model)
    first, second = (place(model, "resid_post", layer) for layer in (0, 1))
    before = states_of(model, clean, [first, second])[1]
    after = states_of(model, corrupted, [first])[1][0]
    edges = latent_edges(first, second, clean, (before[0], before[1]), after, METRIC, torch.arange(N_LATENTS))
    latents, error = latent_effects(first, clean, before[0], after, METRIC, 0)
    assert edges.shape == (N_LATENTS + 1, N_LATENTS + 1)
    torch.testing.assert_close(edges.sum(1), torch.cat([latents, error.view(1)]), **CLOSE)


@pytest.mark.parametrize("kinds", [("resid_post", "resid_post"), ("mlp_out", "transcoder")])
def test_an_edge_is_what_its_end_changes_by(kinds: tuple[str, str]) -> None:
    """By finite differences: the later latents when an earlier one moves a little on its way."""
    model = frozen("toy")
    clean, corrupted = sides(model)
    first, second = (place(model, kind, layer) for layer, kind in enumerate(kinds))
    before = states_of(model, clean, [first, second])[1]
    after = states_of(model, corrupted, [first])[1][0]
    chosen = torch.tensor([2, 5, 11, 17])
    edges = latent_edges(first, second, clean, (before[0], before[1]), after, METRIC, chosen)

    def moved(node: int, by: float) -> torch.Tensor:
        """Metric by each chosen latent's and the error's move, to first order."""
        latents, error = before[0].latents.clone(), before[0].error.clone()
        if node < N_LATENTS:
            latents[..., node] += by * (after.latents - before[0].latents)[..., node]
        else:
            error = error + by * (after.error - before[0].error)
        state = State(before[0].x, latents, error)
        hook = {first.splice.writes: lambda value: first.written(value, state)}
        cache = model.run_with_cache(clean, [second.splice.reads[0], second.splice.writes[0]], None, hook)[1]
        return second.state(cache)

    step = 1e-6
    for node in (0, 3, 7, N_LATENTS):
        ahead, behind = moved(node, step), moved(node, -step)
        for column, latent in enumerate(chosen.tolist()):
            slope = (ahead.latents - behind.latents)[..., latent] / (2 * step)
            end = before[1].latents.clone().requires_grad_()
            logits = model.run_with_hooks(
                clean,
                {
                    second.splice.writes: lambda value, end=end: second.written(
                        value, before[1]._replace(latents=end)
                    )
                },
            )
            (weight,) = torch.autograd.grad(METRIC(logits).sum(), end)
            expected = float((weight[..., latent] * slope).sum())
            # Central differences of 1e-6: curvature 1e-12, rounding 1e-10.
            assert float(edges[node, column]) == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_tokens_that_a_site_lacks_are_refused() -> None:
    model = frozen("toy")
    splice = Splice(
        dictionary("relu", AUTOENCODER).double(), ("resid_post", 0), ("resid_post", 0), "register"
    )
    with pytest.raises(StepError, match="no such token"):
        states_of(model, sides(model)[0], [Placed(model, splice)])
