from __future__ import annotations

import pytest
import torch
import xarray as xr

from prisma_steps.sae.formats import dictionary_dataset, load_dictionary
from prisma_steps.sae.relu import ReLUAutoencoder
from prisma_steps.sae.topk import TopKAutoencoder
from prisma_steps.schema import Dictionary, check, label

HISTORY = {"step": [1, 5], "tokens_seen": [10, 50], "loss": [2.0, 1.0], "fvu": [0.9, 0.5]}


@pytest.fixture(params=["relu", "topk"])
def autoencoder(request):
    made = {
        "relu": lambda: ReLUAutoencoder(6, 12, l1_coefficient=0.5),
        "topk": lambda: TopKAutoencoder(6, 12, k=3, aux_k_coefficient=0.25),
    }[request.param]()
    generator = torch.Generator().manual_seed(0)
    made.initialise(torch.randn(6, generator=generator), 1.7, generator)
    return made


def test_a_dictionary_survives_the_store(autoencoder, tmp_path):
    """Weights, factor and settings come back bit for bit, so latents and reconstructions do."""
    place = {"site": "resid_post", "layer": 2, "tokens": "all"}
    data = label(dictionary_dataset(autoencoder, HISTORY, place))
    check(data, Dictionary)
    data.to_zarr(tmp_path / "data.zarr", consolidated=False)
    again = load_dictionary(xr.open_zarr(tmp_path / "data.zarr", consolidated=False))
    x = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.encode(x), autoencoder.encode(x))
    assert torch.equal(again.decode(again.encode(x)), autoencoder.decode(autoencoder.encode(x)))
    assert type(again) is type(autoencoder)
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_history_and_settings_are_labelled(autoencoder):
    data = dictionary_dataset(autoencoder, HISTORY, {"site": "ln_final", "tokens": "cls"})
    assert data["loss"].sel(step=5) == 1.0
    assert data["fvu"].coords["tokens_seen"].values.tolist() == [10, 50]
    expected = {"relu": "l1_coefficient = 0.5", "topk": "k = 3"}[autoencoder.architecture]
    assert data.attrs["sparsity_setting"] == expected
    assert data.attrs["site"] == "ln_final"
    assert "layer" not in data.attrs
