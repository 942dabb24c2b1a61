"""Rankings against plain sorting of dense latents."""

from __future__ import annotations

import math
from fractions import Fraction

import dask
import distributed
import numpy as np
import pytest
import xarray as xr
from pydantic import ValidationError

from prisma_steps import datasets
from prisma_steps.job import Job
from prisma_steps.sae import ranking as kernels
from prisma_steps.sae.ranking import groups
from prisma_steps.schema import Codes, Ranking, check
from prisma_steps.step import StepError
from prisma_steps.steps.rank_images import Params, rank_images

N_IMAGES, N_TOKENS, N_LATENTS = 40, 5, 12
DEAD, ONCE = 3, 7


@pytest.fixture(scope="module")
def dense() -> np.ndarray:
    """[image, token, latent], many of them of equal height; one never fires, one in a single image."""
    rng = np.random.default_rng(0)
    values = rng.integers(1, 5, (N_IMAGES, N_TOKENS, N_LATENTS)) / 4
    values[rng.random(values.shape) < 0.8] = 0
    values[:, :, [DEAD, ONCE]] = 0
    values[21, 2, ONCE] = 0.75
    return values.astype(np.float32)


def sparse(dense: np.ndarray) -> xr.Dataset:
    """Codes as they are defined, an entry at a time."""
    rows = [
        [(token, latent, image[token, latent]) for token, latent in zip(*np.nonzero(image), strict=True)]
        for image in dense
    ]
    width = max(1, *map(len, rows))
    padded = [row + [(-1, -1, 0)] * (width - len(row)) for row in rows]
    dims = ("image", "entry")
    return xr.Dataset(
        {
            "entry_token": (dims, np.array([[entry[0] for entry in row] for row in padded], np.int32)),
            "entry_latent": (dims, np.array([[entry[1] for entry in row] for row in padded], np.int32)),
            "activation": (dims, np.array([[entry[2] for entry in row] for row in padded], np.float32)),
            "n_active": (("image", "token"), (dense > 0).sum(-1)),
        },
        coords={
            "image": [f"image-{number}" for number in range(len(dense))],
            "token": np.arange(dense.shape[1]),
            "token_kind": ("token", np.array(["cls", *["patch"] * (dense.shape[1] - 1)])),
            "n_latents": dense.shape[2],
            "site": "resid_post",
        },
    )


@pytest.fixture(scope="module")
def codes(dense) -> xr.Dataset:
    made = sparse(dense)
    check(made, Codes)
    return made


def ranked(codes: xr.Dataset, **params) -> xr.Dataset:
    return rank_images(codes, Params(**params), Job())


def brute_force(dense: np.ndarray, latent: int) -> list[int]:
    """Images in which a latent fires: the strongest first, the first first among equals."""
    scores = dense[:, :, latent].max(1)
    return sorted(np.flatnonzero(scores), key=lambda image: (-scores[image], image))


@pytest.mark.parametrize("at_once", [1, 30, 2**24])
@pytest.mark.parametrize("in_block", [1, 7, 40])
def test_rankings_are_brute_force_however_they_are_cut(dense, codes, at_once, in_block, monkeypatch):
    """With ties, a latent that never fires, and one that fires in fewer images than are asked for."""
    monkeypatch.setattr(kernels, "SCORES_AT_ONCE", at_once)
    monkeypatch.setattr(kernels, "BLOCK_BYTES", in_block * kernels.ENTRY_BYTES * codes.sizes["entry"])
    quantiles = [1.0, 0.9, 0.5, 0.1]
    found = ranked(codes, top=6, quantiles=quantiles)
    check(found, Ranking)
    assert found["latent"].values.tolist() == list(range(N_LATENTS))
    for latent in range(N_LATENTS):
        order = brute_force(dense, latent)
        here = found.sel(latent=latent)
        top = [f"image-{image}" for image in order[:6]]
        assert here["top_image"].values.tolist() == top + [""] * (6 - len(top))
        picked = [len(order) - math.ceil(Fraction(str(share)) * len(order)) for share in quantiles]
        at_quantile = [f"image-{order[place]}" if order else "" for place in picked]
        assert here["quantile_image"].values.tolist() == at_quantile
        for name, dim in (("top", "rank"), ("quantile", "quantile")):
            for place in range(here.sizes[dim]):
                one = here.isel({dim: place})
                if one[f"{name}_image"].item() == "":
                    assert np.isnan(one[f"{name}_activation"])
                    assert np.isnan(one[f"{name}_heat_map"]).all()
                    continue
                heat = dense[int(one[f"{name}_image"].item().removeprefix("image-")), :, latent]
                np.testing.assert_array_equal(one[f"{name}_heat_map"], heat)
                assert one[f"{name}_activation"] == heat.max()
    fires = (dense > 0).any(1).mean(0)
    np.testing.assert_allclose(found["firing_frequency_per_image"], fires)
    assert fires[DEAD] == 0
    assert fires[ONCE] == 1 / N_IMAGES


def test_scores_at_quantiles_are_those_of_numpy(dense, codes):
    found = ranked(codes, quantiles=[0.25, 0.5, 0.75])
    for latent in set(range(N_LATENTS)) - {DEAD}:
        scores = dense[:, :, latent].max(1)
        expected = np.quantile(scores[scores > 0], [0.25, 0.5, 0.75], method="inverted_cdf")
        np.testing.assert_array_equal(found["quantile_activation"].sel(latent=latent), expected)


def test_a_quantile_that_no_float_hits_is_the_rank_it_is_meant_to_be():
    """0.1 × 30 is 3.0000000000000004, and is the third from the weakest."""
    dense = np.arange(1, 31, dtype=np.float32).reshape(30, 1, 1)
    found = ranked(sparse(dense), quantiles=[0.1])
    assert found["quantile_activation"].item() == 3


def test_a_planted_latent_is_found_where_it_was_planted(dense):
    planted = dense.copy()
    planted[17, 4, 5] = 9
    planted[4, 1, 5] = 8
    found = ranked(sparse(planted), top=2).sel(latent=5)
    assert found["top_image"].values.tolist() == ["image-17", "image-4"]
    assert found["top_heat_map"].argmax("token").values.tolist() == [4, 1]
    assert found["token_kind"].values.tolist() == ["cls", *["patch"] * 4]


def test_some_latents_are_ranked_as_among_all(codes):
    every = ranked(codes)
    some = ranked(codes, latents=[9, 2, DEAD])
    xr.testing.assert_identical(some, every.sel(latent=[9, 2, DEAD]))


def test_so_many_latents_are_drawn_of_those_that_fire(codes):
    draws = [ranked(codes, latents=4, seed=seed)["latent"].values.tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert all(draw == sorted(set(draw)) and len(draw) == 4 for draw in draws)
    every = ranked(codes, latents=100)["latent"].values.tolist()
    assert every == [latent for latent in range(N_LATENTS) if latent != DEAD]


def test_when_nothing_fires_there_is_nothing_to_show():
    silent = sparse(np.zeros((3, 2, 4), np.float32))
    found = ranked(silent)
    assert (found["top_image"] == "").all()
    assert ranked(silent, latents=3).sizes["latent"] == 0


def test_groups_hold_what_is_allowed_or_one_latent(monkeypatch):
    monkeypatch.setattr(kernels, "SCORES_AT_ONCE", 10)
    latents, counts = np.array([4, 2, 9, 1, 0]), np.array([6, 4, 30, 1, 2])
    assert [group.tolist() for group in groups(latents, counts)] == [[4, 2], [9], [1, 0]]


def stored(codes: xr.Dataset, folder) -> xr.Dataset:
    datasets.write(codes, folder / "data.zarr")
    return datasets.open_dataset(folder / "data.zarr")


def test_stored_codes_give_the_same(codes, tmp_path):
    xr.testing.assert_identical(ranked(stored(codes, tmp_path)), ranked(codes))


def test_a_ranking_survives_the_store(codes, tmp_path):
    found = ranked(codes)
    datasets.write(found, tmp_path / "ranking.zarr")
    again = datasets.open_dataset(tmp_path / "ranking.zarr")
    assert again["top_image"].values.tolist() == found["top_image"].values.tolist()
    np.testing.assert_array_equal(again["top_heat_map"].values, found["top_heat_map"].values)


def test_a_cluster_that_the_environment_names_does_the_work(codes, tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK_BYTES", 7 * kernels.ENTRY_BYTES * codes.sizes["entry"])
    lazy = stored(codes, tmp_path)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        dask.config.set({"scheduler-address": cluster.scheduler_address}),
    ):
        done = []
        monkeypatch.setattr(distributed.Client, "close", noting(distributed.Client.close, done))
        found = ranked(lazy)
    assert sum(done) > 3 * (N_IMAGES // 7)
    xr.testing.assert_identical(found, ranked(codes))


def noting(close, done):
    """``close`` of a client that first notes how many tasks the workers ran."""

    def noted(client, *args, **kwargs):
        if not done:
            ran = client.run(lambda dask_worker: dask_worker.state.executed_count)
            done.extend(ran.values())
        return close(client, *args, **kwargs)

    return noted


def test_a_latent_that_is_not_there_is_refused(codes):
    with pytest.raises(StepError, match="no latent 12: the dictionary has latents 0 to 11"):
        ranked(codes, latents=[0, 12])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"latents": []}, "name at least one"),
        ({"latents": 0}, "name at least one"),
        ({"latents": [1, 1]}, "each latent may be named once"),
        ({"quantiles": [0.0]}, "shares above 0, up to 1"),
        ({"quantiles": [0.5, 0.5]}, "each once"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        Params(**wrong)
