from __future__ import annotations

import pytest
import torch
import xarray as xr

from prisma_steps.sae.autoencoder import Autoencoder
from prisma_steps.sae.labelled import dictionary_dataset, load_dictionary
from prisma_steps.schema import Dictionary, check, label
from tests.sae.dictionaries import KINDS, SETTINGS, batch, make

HISTORY = {"step": [1, 5], "tokens_seen": [10, 50], "loss": [2.0, 1.0], "fvu": [0.9, 0.5]}


@pytest.fixture(params=[(name, kind) for name in SETTINGS for kind in KINDS], ids=lambda pair: "-".join(pair))
def sae(request) -> Autoencoder:
    return make(*request.param).float()


def place(sae: Autoencoder) -> dict:
    layers = {"layers": [3, 7]} if sae.shape.kind == "crosscoder" else {"layer": 2}
    target = {"target_site": "mlp_out"} if sae.shape.kind == "transcoder" else {}
    return {"site": "resid_post", "tokens": "all", **layers, **target}


@pytest.mark.parametrize("normalise", ["expected_norm", "layer_norm"])
def test_a_dictionary_survives_the_store(sae, tmp_path, normalise):
    """Weights, factors and settings come back bit for bit, so latents and reconstructions do."""
    sae = make(sae.architecture, sae.shape.kind, normalise).float()
    data = label(dictionary_dataset(sae, HISTORY, place(sae)))
    check(data, Dictionary)
    data.to_zarr(tmp_path / "data.zarr", consolidated=False)
    again = load_dictionary(xr.open_zarr(tmp_path / "data.zarr", consolidated=False))
    x = batch(sae)[0].float()
    for ours, theirs in zip(again(x), sae(x), strict=True):
        assert torch.equal(ours, theirs)
    assert type(again) is type(sae)
    assert again.shape == sae.shape
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_weights_are_labelled_by_what_they_read_and_write(sae):
    data = dictionary_dataset(sae, HISTORY, place(sae))
    dims = {
        "autoencoder": (("d_model", "latent"), ("latent", "d_model")),
        "transcoder": (("d_model", "latent"), ("latent", "d_target")),
        "crosscoder": (("layer", "d_model", "latent"), ("latent", "layer", "d_model")),
    }[sae.shape.kind]
    assert (data["W_enc"].dims, data["W_dec"].dims) == dims
    if sae.shape.kind == "crosscoder":
        assert torch.equal(torch.from_numpy(data["W_enc"].sel(layer=7).values), sae.W_enc[6:])


def test_history_and_settings_are_labelled():
    data = dictionary_dataset(make("topk"), HISTORY, {"site": "ln_final", "tokens": "cls"})
    assert data["loss"].sel(step=5) == 1.0
    assert data["fvu"].coords["tokens_seen"].values.tolist() == [10, 50]
    assert data.attrs["sparsity_setting"] == "k = 3"
    assert data.attrs["site"] == "ln_final"
    assert "layer" not in data.attrs
