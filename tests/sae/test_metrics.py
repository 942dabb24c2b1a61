"""Metrics against brute-force NumPy over the whole evaluation set."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prisma_steps.sae.metrics import (
    ClassificationSums,
    LatentSums,
    ReconstructionSums,
    ce_recovered,
    density,
    nearest_rows,
    states,
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


@pytest.mark.parametrize("cut", [1, 3])
def test_latents_are_counted_and_averaged_where_they_fire(cut):
    latents = torch.zeros(4, 5, 4)
    latents[0, 1, 0] = latents[0, 2, 0] = latents[3, 0, 0] = 1.0
    latents[3, 0, 0] = 4.0
    latents[:, :, 1] = 0.5
    latents[2, 4, 3] = 7.0
    sums = LatentSums(4)
    sums.add(latents[:cut])
    sums.add(latents[cut:])
    assert sums.per_token().tolist() == [3 / 20, 1.0, 0.0, 1 / 20]
    assert sums.per_image().tolist() == [0.5, 1.0, 0.0, 0.25]
    np.testing.assert_array_equal(sums.mean_activation(), [2.0, 0.5, np.nan, 7.0])
    assert sums.max_activation().tolist() == [4.0, 0.5, 0.0, 7.0]


def test_every_latent_is_in_one_state():
    shares = torch.tensor([0.0, 1e-9, 0.1, 0.11, 1.0], dtype=torch.float64)
    assert states(shares) == ["dead", "alive", "alive", "dense", "dense"]


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


def test_sums_of_images_are_brute_force():
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.standard_normal((9, 4)))
    classes = torch.from_numpy(rng.integers(0, 4, 9))
    parts = [ClassificationSums.of(logits[w], classes[w], logits[w] / 100) for w in (slice(2), slice(2, 9))]
    found = (parts[0] + parts[1]).metrics("reconstruction")
    exact = logits.numpy()

    def ce(values):
        picked = values[range(9), classes.numpy()]
        return np.mean(np.log(np.exp(values).sum(1)) - picked)

    assert found == pytest.approx(
        {
            "ce_reconstruction": ce(exact),
            "top1_reconstruction": np.mean(exact.argmax(1) == classes.numpy()),
            "ce_reconstruction_without_temperature": ce(exact / 100),
        },
        rel=1e-12,
    )
    assert set(ClassificationSums.of(logits, classes).metrics()) == {"ce", "top1"}


@pytest.mark.parametrize("cosines", [1, 33, 1000])
def test_nearest_other_row_is_brute_force(cosines, monkeypatch):
    """However many rows are compared at once."""
    monkeypatch.setattr("prisma_steps.sae.similarity._COSINES", cosines)
    rows = np.random.default_rng(0).standard_normal((11, 4)).astype(np.float32)
    rows[3] = 2 * rows[8]
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    others = unit @ unit.T - 9 * np.eye(11)
    which, cosine = nearest_rows(torch.from_numpy(rows))
    np.testing.assert_array_equal(which, others.argmax(1))
    np.testing.assert_allclose(cosine, others.max(1), rtol=1e-12)
    assert (which[3], which[8]) == (8, 3)
    assert cosine[3] == pytest.approx(1)


def test_the_one_row_of_a_dictionary_has_no_neighbour():
    which, cosine = nearest_rows(torch.ones(1, 3))
    assert which.tolist() == [-1]
    assert cosine.isnan().all()
