"""Cosines of decoder rows against brute force, and dictionaries whose likeness is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prisma_steps.sae import similarity
from prisma_steps.sae.similarity import chained_order, cosine_map, directions, matched_order, nearest


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(directions(torch.randn(n, 5, generator=generator)) for n in (23, 17))


def cosines(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    return np.array([[float(torch.dot(a, b) / a.norm() / b.norm()) for b in second] for a in first])


@pytest.mark.parametrize("at_once", [2**25, 60])  # all in one block, or three rows in each
def test_nearest_rows_are_those_of_brute_force(rows, at_once, monkeypatch) -> None:
    monkeypatch.setattr(similarity, "_COSINES", at_once)
    expected = cosines(*rows)
    of_first, of_second = nearest(*rows)
    # float32 dot products of 5 terms
    np.testing.assert_allclose(of_first.cosine, expected.max(1), atol=1e-6)
    np.testing.assert_allclose(of_second.cosine, expected.max(0), atol=1e-6)
    assert of_first.latent.tolist() == expected.argmax(1).tolist()
    assert of_second.latent.tolist() == expected.argmax(0).tolist()


@pytest.mark.parametrize("at_once", [2**25, 60])
def test_no_row_is_near_to_itself(rows, at_once, monkeypatch) -> None:
    monkeypatch.setattr(similarity, "_COSINES", at_once)
    expected = cosines(rows[0], rows[0])
    np.fill_diagonal(expected, -np.inf)
    of_first, of_second = nearest(rows[0], rows[0], itself=True)
    for found in (of_first, of_second):
        np.testing.assert_allclose(found.cosine, expected.max(1), atol=1e-6)
        assert found.latent.tolist() == expected.argmax(1).tolist()


def test_pairs_stand_at_equal_places_and_every_latent_once(rows) -> None:
    expected = cosines(*rows)
    first, second = matched_order(*nearest(*rows))
    assert sorted(first) == list(range(23))
    assert sorted(second) == list(range(17))
    mutual = [i for i in range(23) if expected[:, expected[i].argmax()].argmax() == i]
    n_pairs = len(mutual)
    assert sorted(first[:n_pairs]) == mutual
    paired = expected[first[:n_pairs], second[:n_pairs]]
    np.testing.assert_allclose(paired, expected[first[:n_pairs]].max(1))
    assert (np.diff(paired) <= 0).all()
    assert (np.diff(expected[first[n_pairs:]].max(1)) <= 1e-6).all()


@pytest.mark.parametrize("at_once", [2**25, 60])
@pytest.mark.parametrize("cells", [4, 10, 256])
def test_cells_hold_the_highest_cosine_of_their_latents(rows, cells, at_once, monkeypatch) -> None:
    monkeypatch.setattr(similarity, "_COSINES", at_once)
    expected = cosines(*rows)
    high, wide = (int(np.ceil(len(side) / cells)) for side in rows)
    found = cosine_map(*rows, cells)
    assert max(found.shape) <= cells
    for i, j in np.ndindex(*found.shape):
        block = expected[i * high : (i + 1) * high, j * wide : (j + 1) * wide]
        assert found[i, j] == pytest.approx(block.max(), abs=1e-6)


def test_of_one_dictionary_the_diagonal_is_missing(rows) -> None:
    found = cosine_map(rows[0], rows[0], 256, itself=True)
    assert np.isnan(found.diagonal()).all()
    assert np.isfinite(found[~np.eye(len(found), dtype=bool)]).all()


def test_a_chain_goes_on_with_the_most_similar() -> None:
    angles = torch.tensor([0.0, 2.0, 0.3, 2.2, 0.9])
    rows = torch.stack([angles.cos(), angles.sin()], 1)
    assert chained_order(rows).tolist() == [0, 2, 4, 1, 3]
