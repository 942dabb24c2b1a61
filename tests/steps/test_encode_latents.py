"""Sparse codes against the dense latents of the same dictionary."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from prisma_steps import datasets
from prisma_steps.job import Job
from prisma_steps.sae.autoencoder import Shape
from prisma_steps.sae.codes import dense_latents
from prisma_steps.sae.labelled import load_dictionary
from prisma_steps.schema import Codes, check
from prisma_steps.step import StepError
from prisma_steps.steps import encode_latents as module
from prisma_steps.steps.encode_latents import Params, encode_latents
from tests.sae.dictionaries import labelled, untrained

N_IMAGES, N_LATENTS = 23, 24


@pytest.fixture(scope="module")
def activations() -> xr.Dataset:
    rng = np.random.default_rng(1)
    values = rng.standard_normal((N_IMAGES, 3, 5, 8)).astype(np.float32)
    values[:, :, 0] *= 10  # tokens differ in L0
    dims = ("image", "layer", "token", "d_model")
    return xr.Dataset(
        {
            "resid_post": (dims, values),
            "ln2_out": (dims, values + 1),
            "embed": (dims[:1] + dims[2:], values[:, 0]),
        },
        coords={
            "image": [f"image-{number}" for number in range(N_IMAGES)],
            "label": ("image", np.arange(N_IMAGES) % 3),
            "layer": [0, 1, 4],
            "token": np.arange(5),
            "token_kind": ("token", np.array(["cls", *["patch"] * 4])),
            "patch_row": ("token", np.array([-1, 0, 0, 1, 1])),
        },
    )


def relu(**shape):
    return untrained(Shape(8, N_LATENTS, **shape), "relu")


CASES = {
    "relu": (lambda: labelled(relu(), layer=1), lambda a: a["resid_post"].sel(layer=1)),
    "topk": (
        lambda: labelled(untrained(Shape(8, N_LATENTS)), layer=4),
        lambda a: a["resid_post"].sel(layer=4),
    ),
    "one place": (lambda: labelled(relu(), site="embed"), lambda a: a["embed"]),
    "transcoder": (
        lambda: labelled(relu(d_target=6), site="ln2_out", target_site="mlp_out", layer=0),
        lambda a: a["ln2_out"].sel(layer=0),
    ),
    "crosscoder": (
        lambda: labelled(relu(n_layers=2), layers=[4, 0]),
        lambda a: a["resid_post"].sel(layer=[4, 0]).transpose("image", "token", "layer", "d_model"),
    ),
}


def encoded(activations, sae, tmp_path, **params) -> xr.Dataset:
    return encode_latents(activations, sae, Params(**params), Job(tmp_path)).load()


def dense(sae: xr.Dataset, values: xr.DataArray) -> np.ndarray:
    x = torch.from_numpy(values.values).flatten(2)
    return load_dictionary(sae).encode(x).numpy()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_codes_are_the_dense_latents(case, at_once, activations, tmp_path, monkeypatch):
    """All of them, however many images are encoded at once."""
    monkeypatch.setattr(module, "_images_at_once", lambda *_: at_once)
    sae, values = CASES[case][0](), CASES[case][1](activations)
    codes = encoded(activations, sae, tmp_path)
    check(codes, Codes)
    expected = dense(sae, values)
    found = dense_latents(codes, range(N_LATENTS))
    assert found.dims == ("image", "token", "latent")
    # The products of other numbers of tokens differ in the last digit of a float32 of order 10, and a latent
    # at 0 may fire or not.
    np.testing.assert_allclose(found.values, expected, atol=1e-5)
    if at_once == 100:
        np.testing.assert_array_equal(found.values, expected)
        np.testing.assert_array_equal(codes["n_active"], (expected > 0).sum(-1))
        assert codes.sizes["entry"] == (expected > 0).sum((1, 2)).max()


def test_rows_are_in_order_and_padded(activations, tmp_path):
    codes = encoded(activations, labelled(relu(), layer=1), tmp_path)
    assert np.ptp(codes["n_active"].sum("token").values) > 0
    for image in range(N_IMAGES):
        row, length = codes.isel(image=image), int(codes["n_active"][image].sum())
        places = list(
            zip(row["entry_token"].values[:length], row["entry_latent"].values[:length], strict=True)
        )
        assert places == sorted(set(places))
        assert set(row["entry_token"].values[length:]) | set(row["entry_latent"].values[length:]) <= {-1}
        assert not row["activation"].values[length:].any()


def test_labels_are_kept(activations, tmp_path):
    codes = encoded(activations, labelled(relu(), layer=1, tokens="patch"), tmp_path, n_images=7)
    assert codes["image"].values.tolist() == [f"image-{number}" for number in range(7)]
    assert codes["label"].values.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert codes["token_kind"].values.tolist() == ["patch"] * 4
    assert codes["patch_row"].values.tolist() == [0, 0, 1, 1]
    assert (codes["site"].item(), codes["layer"].item(), codes["n_latents"].item()) == ("resid_post", 1, 24)
    found = dense_latents(codes, [5, 2])
    assert found["latent"].values.tolist() == [5, 2]
    assert found["token_kind"].values.tolist() == ["patch"] * 4
    sae, values = CASES["relu"][0](), CASES["relu"][1](activations)
    expected = dense(sae, values)[:7, 1:][:, :, [5, 2]]
    np.testing.assert_allclose(found.values, expected, atol=1e-5)  # as above


def test_stored_codes_are_read_lazily_image_by_image(activations, tmp_path):
    blocks = encode_latents(activations, labelled(relu(), layer=1), Params(), Job(tmp_path / "job"))
    datasets.write_blocks(blocks, tmp_path / "data.zarr", tmp_path / "blocks.json", lambda *_: None)
    lazy = datasets.open_lazily(tmp_path / "data.zarr")
    found = dense_latents(lazy.isel(image=[3, 20]), [0, 7, 7])
    assert found.chunks is not None
    sae, values = CASES["relu"][0](), CASES["relu"][1](activations)
    expected = dense(sae, values)[[3, 20]][:, :, [0, 7, 7]]
    np.testing.assert_array_equal(found.values, expected)


def test_points_of_a_grid_are_dense_latents_too(activations, tmp_path):
    """Joined by their labels, shorter rows are filled with NaN."""
    saes = [labelled(untrained(Shape(8, N_LATENTS), k=k), layer=1) for k in (2, 5)]
    points = [encoded(activations, sae, tmp_path / str(n)) for n, sae in enumerate(saes)]
    joined = xr.concat(
        [point.chunk() for point in points],
        "k",
        join="outer",
        data_vars="all",
        coords="different",
        compat="equals",
        combine_attrs="drop",
    )
    assert joined["entry_latent"].isnull().any()
    for number, point in enumerate(points):
        found = dense_latents(joined.isel(k=number), range(N_LATENTS))
        np.testing.assert_array_equal(found.values, dense_latents(point, range(N_LATENTS)).values)


class Killed(Exception):
    pass


@pytest.mark.parametrize("blocks_before", [0, 1, 3, 4])
def test_an_interrupted_job_goes_on_and_leaves_the_same(activations, tmp_path, monkeypatch, blocks_before):
    """Also when it was killed while it wrote: half a block is encoded anew."""
    monkeypatch.setattr(module, "_images_at_once", lambda *_: 4)
    sae = labelled(relu(), layer=1)
    expected = encoded(activations, sae, tmp_path / "whole")
    job = Job(tmp_path / "killed")
    calls = []

    def report(done, *_):
        calls.append(done)
        if len(calls) > blocks_before:
            raise Killed

    job.report = report
    with pytest.raises(Killed):
        encode_latents(activations, sae, Params(), job)
    for name in ("entries", "counts"):
        with (tmp_path / "killed" / "codes" / name).open("ab") as file:
            file.write(b"\1" * 77)
    again = Job(tmp_path / "killed")
    done = []
    again.report = lambda now, *_: done.append(now)
    xr.testing.assert_identical(encode_latents(activations, sae, Params(), again).load(), expected)
    assert done[0] == min(4 * (blocks_before + 2), N_IMAGES)


def test_a_dictionary_that_never_fires_leaves_padding(activations, tmp_path):
    silent = relu()
    silent.b_enc.fill_(-1e6)
    codes = encoded(activations, labelled(silent, layer=1), tmp_path)
    assert codes.sizes["entry"] == 1
    assert not dense_latents(codes, range(N_LATENTS)).any()


def test_what_does_not_fit_is_refused(activations, tmp_path):
    def refused(data, sae, message, **params):
        with pytest.raises(StepError, match=message):
            encode_latents(data, sae, Params(**params), Job(tmp_path))

    sae = labelled(relu(), layer=1)
    refused(activations, labelled(relu(), layer=2), r"reads layer 2 of 'resid_post'; stored are \[0, 1, 4\]")
    refused(activations[["embed"]], sae, "reads 'resid_post'; these are activations of embed")
    narrow = labelled(untrained(Shape(6, 12)), layer=1)
    refused(activations, narrow, "'resid_post' is 8 wide, the dictionary reads 6 coordinates")
    refused(activations, sae, "n_images is 24, but there are only 23 images", n_images=24)
    broken = activations.copy(deep=True)
    broken["resid_post"].values[17, 1, 2, 3] = np.nan
    refused(broken, sae, "the activations of image 'image-17' are not finite")


def test_a_latent_that_is_not_there_is_refused(activations, tmp_path):
    codes = encoded(activations, labelled(relu(), layer=1), tmp_path)
    with pytest.raises(StepError, match="no latent 24: the dictionary has latents 0 to 23"):
        dense_latents(codes, [3, 24])
