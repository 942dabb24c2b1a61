from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from prisma_steps import schema
from prisma_steps.job import Job
from prisma_steps.sae.autoencoder import Shape
from prisma_steps.step import StepError
from prisma_steps.steps.compare_dictionaries import Params, compare_dictionaries
from tests.sae.dictionaries import labelled
from tests.sae.published import dictionary


def sae_of(d_model: int = 12, n_latents: int = 30, seed: int = 0) -> xr.Dataset:
    sae = labelled(dictionary("relu", Shape(d_model, n_latents)), layer=0)
    rows = torch.randn(n_latents, d_model, generator=torch.Generator().manual_seed(seed))
    return sae.assign(W_dec=(("latent", "d_model"), rows.numpy()))


def compare(first: xr.Dataset, second: xr.Dataset, **params) -> xr.Dataset:
    found = compare_dictionaries(first, second, Params(**params), Job())
    schema.check(found, schema.Similarity)
    return found


def test_a_permuted_dictionary_is_matched_fully() -> None:
    first, order = sae_of(), np.random.default_rng(1).permutation(30)
    # Rows of other lengths, as a dictionary without unit norm has them, point the same way.
    lengths = np.linspace(0.5, 2, 30, dtype=np.float32)[:, None]
    found = compare(first, first.assign(W_dec=first["W_dec"][order] * lengths))
    assert found["first_nearest"].values[order].tolist() == list(range(30))
    assert found["second_nearest"].values.tolist() == order.tolist()
    assert found["first_matched_share"].item() == found["second_matched_share"].item() == 1
    np.testing.assert_allclose(found["first_max_cosine"], 1, atol=1e-6)  # float32 rows of norm 1
    np.testing.assert_allclose(np.diagonal(found["cosine_map"]), 1, atol=1e-6)


def test_half_of_a_dictionary_is_shared() -> None:
    first, second = sae_of(), sae_of(seed=7)
    mixed = first["W_dec"].values.copy()
    mixed[15:] = second["W_dec"].values[15:]
    found = compare(first, second.assign(W_dec=(("latent", "d_model"), mixed)), threshold=0.99)
    assert found["first_matched_share"].item() == found["second_matched_share"].item() == 0.5
    assert found["first_nearest"].values[:15].tolist() == list(range(15))
    # Places are those in the map: the shared half is first.
    assert sorted(found["first_place"].values[:15]) == list(range(15))


def test_a_dictionary_with_itself_is_compared_with_its_other_rows() -> None:
    sae = sae_of()
    rows = sae["W_dec"].values.copy()
    rows[3] = rows[20]
    found = compare(*[sae.assign(W_dec=(("latent", "d_model"), rows))] * 2)
    assert found.attrs["itself"] == 1
    assert found["first_nearest"].values[[3, 20]].tolist() == [20, 3]
    assert (found["first_nearest"].values != np.arange(30)).all()
    places = found["first_place"].values
    assert abs(places[3] - places[20]) == 1
    assert np.isnan(found["cosine_map"].values.diagonal()).all()


def test_large_dictionaries_share_cells() -> None:
    found = compare(sae_of(n_latents=30), sae_of(n_latents=50, seed=3), cells=10)
    assert dict(found["cosine_map"].sizes) == {"first_cell": 10, "second_cell": 10}
    assert found["cosine_map"].max().item() == pytest.approx(found["first_max_cosine"].max().item())


def test_other_widths_are_refused() -> None:
    with pytest.raises(StepError, match="first have 12 coordinates, those of second 8"):
        compare(sae_of(), sae_of(d_model=8))
    one = sae_of().isel(latent=[0])
    with pytest.raises(StepError, match="one latent has no others"):
        compare(one, one)
