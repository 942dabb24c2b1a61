"""Metrics against brute-force NumPy over the whole evaluation set."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prisma_steps.sae.metrics import (
    FiringCounts,
    ReconstructionSums,
    ce_recovered,
    density,
    max_decoder_cosine,
    summed_cross_entropy,
)


def sums_of(x: np.ndarray, x_hat: np.ndarray, latents: np.ndarray, cuts: list[int]) -> ReconstructionSums:
    """Sums added up over parts cut at ``cuts``."""
    bounds = [0, *sorted(set(cuts)), len(x)]
    parts = [
        ReconstructionSums.of(*(torch.from_numpy(values[a:b]) for values in (x, x_hat, latents)))
        for a, b in zip(bounds, bounds[1:], strict=False)
        if a < b
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


@given(cuts=st.lists(st.integers(1, 49), max_size=6), seed=st.integers(0, 5))
def test_metrics_are_brute_force_however_the_tokens_are_cut(cuts, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((50, 4)) * rng.uniform(0.1, 5, (50, 1)) + 3
    x_hat = x + 0.3 * rng.standard_normal((50, 4))
    latents = rng.standard_normal((50, 7)).clip(0)
    metrics = sums_of(x, x_hat, latents, cuts).metrics()
    fvu = ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(x_hat, axis=1)
    expected = {
        "l0": np.mean([sum(value > 0 for value in row) for row in latents]),
        "mse": ((x - x_hat) ** 2).sum(1).mean(),
        "fvu": fvu,
        "explained_variance": 1 - fvu,
        "cosine_similarity": ((x * x_hat).sum(1) / norms).mean(),
        "n_tokens": 50,
    }
    assert metrics == pytest.approx(expected, rel=1e-12)


def test_fvu_of_the_mean_is_one_and_of_a_copy_zero():
    """Batches of different means: FVU about batch means would not be 1."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_normal((20, 3)) + shift for shift in (-5, 0, 9)])
    mean = np.broadcast_to(x.mean(0), x.shape)
    latents = np.zeros((60, 2))
    assert sums_of(x, mean.copy(), latents, [20, 40]).metrics()["fvu"] == pytest.approx(1, rel=1e-12)
    copy = sums_of(x, x, latents, [20, 40]).metrics()
    assert copy["fvu"] == 0
    assert copy["explained_variance"] == 1
    assert copy["cosine_similarity"] == pytest.approx(1, rel=1e-12)


def test_cosine_similarity_is_along_d_model():
    """Two tokens whose reconstructions point the right way at any length: 1, whatever the token axis says."""
    x = np.array([[1.0, 0.0], [0.0, 2.0]])
    x_hat = np.array([[3.0, 0.0], [0.0, 0.5]])
    assert sums_of(x, x_hat, np.zeros((2, 1)), []).metrics()["cosine_similarity"] == pytest.approx(1)


def test_scatter_far_from_the_origin_keeps_its_digits():
    """Σ‖x‖² − n‖x̄‖² would leave 1e-4 relative here; merging parts does not."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1000, 3)) + 1e6
    metrics = sums_of(x, x + 1, np.zeros((1000, 1)), list(range(100, 1000, 100))).metrics()
    assert metrics["fvu"] == pytest.approx(3000 / ((x - x.mean(0)) ** 2).sum(), rel=1e-9)


def test_equal_tokens_have_no_fvu():
    x = np.ones((5, 2))
    assert math.isnan(sums_of(x, x, np.zeros((5, 1)), []).metrics()["fvu"])


def test_firing_frequencies_per_token_and_per_image():
    latents = torch.zeros(4, 5, 3)
    latents[0, 1, 0] = latents[0, 2, 0] = latents[3, 0, 0] = 1.0
    latents[:, :, 1] = 0.1
    counts = FiringCounts(3)
    counts.add(latents[:3])
    counts.add(latents[3:])
    assert counts.per_token().tolist() == [3 / 20, 1.0, 0.0]
    assert counts.per_image().tolist() == [0.5, 1.0, 0.0]


def test_density_shares():
    shares = density(torch.tensor([0.0, 0.05, 0.1, 0.2, 1.0]))
    assert shares == pytest.approx({"alive_latents": 0.8, "dead_share": 0.2, "dense_latents": 0.4})


def test_ce_recovered_known_answers():
    """The published CLIP layer 9 number is above 100: the reconstruction lowers the loss."""
    assert ce_recovered(ce=1.0, ce_reconstruction=1.0, ce_zero_ablation=3.0) == 100
    assert ce_recovered(ce=1.0, ce_reconstruction=3.0, ce_zero_ablation=3.0) == 0
    assert ce_recovered(ce=1.0, ce_reconstruction=0.5, ce_zero_ablation=3.0) == 125
    assert math.isnan(ce_recovered(1.0, 1.0, 1.0))


def test_cross_entropy_is_brute_force():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((6, 4)).astype(np.float32)
    classes = rng.integers(0, 4, 6)
    exact = logits.astype(np.float64)
    expected = sum(np.log(np.exp(row).sum()) - row[c] for row, c in zip(exact, classes, strict=True))
    total = summed_cross_entropy(torch.from_numpy(logits), torch.from_numpy(classes))
    assert total == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_nearest_other_row_is_brute_force(chunk):
    rows = np.random.default_rng(0).standard_normal((11, 4)).astype(np.float32)
    rows[3] = 2 * rows[8]
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    expected = [max(unit[i] @ unit[j] for j in range(11) if j != i) for i in range(11)]
    nearest = max_decoder_cosine(torch.from_numpy(rows), chunk)
    np.testing.assert_allclose(nearest, expected, rtol=1e-12)
    assert nearest[3] == pytest.approx(1)
