"""Neurons as latents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from prisma_steps.job import Job
from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.sae.codes import dense_latents
from prisma_steps.sae.labelled import load_dictionary
from prisma_steps.schema import Dictionary, check
from prisma_steps.step import Artifact, StepError
from prisma_steps.steps.encode_latents import Params as EncodeParams
from prisma_steps.steps.encode_latents import encode_latents
from prisma_steps.steps.evaluate_sae import Params as EvaluateParams
from prisma_steps.steps.evaluate_sae import evaluate_sae
from prisma_steps.steps.extract_activations import Params as ExtractParams
from prisma_steps.steps.extract_activations import extract_activations
from prisma_steps.steps.neuron_basis import Params, neuron_basis
from prisma_steps.steps.rank_images import Params as RankParams
from prisma_steps.steps.rank_images import rank_images
from tests.artifacts import saved

N_IMAGES = 30
CONFIG = ToyViTConfig(
    n_layers=2, d_model=8, n_heads=2, d_mlp=16, patch_size=4, image_size=8, n_channels=1, n_classes=3
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Artifact:
    vit = ToyViT.initialised(CONFIG, torch.Generator().manual_seed(0))
    return saved(vit, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def images() -> xr.Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (N_IMAGES, 1, 8, 8), np.uint8)
    return xr.Dataset(
        {"pixels": (("image", "channel", "row", "column"), pixels)},
        coords={
            "image": [f"image-{n}" for n in range(N_IMAGES)],
            "label": ("image", np.arange(N_IMAGES) % 3),
        },
    )


@pytest.fixture(scope="module")
def activations(model, images) -> xr.Dataset:
    params = ExtractParams(sites=["mlp_post", "resid_post"])
    return extract_activations(model, images, params, Job()).load()


def basis(activations, **params) -> xr.Dataset:
    return neuron_basis(activations, Params(**{"site": "mlp_post", "layer": 1, **params}), Job())


def tokens_of(activations, site="mlp_post", layer=1) -> np.ndarray:
    return activations[site].sel(layer=layer).values.reshape(N_IMAGES * 5, -1)


def test_all_neurons_of_both_signs_are_the_activations(activations, model, images):
    """Nothing is lost: FVU 0, and the model answers as before."""
    sae = basis(activations)
    check(sae, Dictionary)
    assert (sae.attrs["architecture"], sae.attrs["kind"], sae.sizes["latent"]) == (
        "neurons",
        "autoencoder",
        32,
    )
    data = evaluate_sae(sae, model, images, EvaluateParams(), Job())
    # x − b_dec + b_dec is x up to a rounding of float32.
    np.testing.assert_allclose(data["fvu"], 0, atol=1e-12)
    assert data["ce_recovered"].item() == pytest.approx(100, abs=1e-2)
    assert data["l0"].sel(token_kind="all").item() == pytest.approx(16)


def test_no_neuron_but_the_mean_has_an_fvu_of_one(activations, model, images):
    """What is not kept is the mean: with every latent below a threshold, FVU is 1."""
    sae = basis(activations)
    sae["b_enc"] = sae["b_enc"] - 1e6
    data = evaluate_sae(sae, model, images, EvaluateParams(), Job())
    assert data["fvu"].sel(token_kind="all").item() == pytest.approx(1, rel=1e-6)
    assert (data["latent_state"] == "dead").all()


@pytest.mark.parametrize("sign", ["positive", "both"])
@pytest.mark.parametrize("centre", ["mean", "zeros"])
def test_the_largest_neurons_are_kept(activations, sign, centre):
    """Against sorting, token by token."""
    sae = load_dictionary(basis(activations, sign=sign, centre=centre, k=3))
    x = tokens_of(activations)
    middle = x.astype(np.float64).mean(0).astype(np.float32) if centre == "mean" else np.zeros(16, np.float32)
    away = x - middle
    latents = np.maximum(away if sign == "positive" else np.concatenate([away, -away], 1), 0)
    cut = np.sort(latents, 1)[:, -3:].min(1, keepdims=True)
    expected = latents * (latents >= cut)
    found, x_hat = (values.numpy() for values in sae(torch.from_numpy(x)))
    # One rounding of the mean; a neuron that is as large as it is small would be another matter.
    np.testing.assert_allclose(found, expected, atol=1e-6)
    signed = expected[:, :16] - (expected[:, 16:] if sign == "both" else 0)
    np.testing.assert_allclose(x_hat, signed + middle, atol=1e-6)


def test_fvu_falls_with_every_neuron_and_l0_is_k(activations, model, images):
    saes = [basis(activations, k=k) for k in (1, 4, 8, 12, 16)]
    data = [evaluate_sae(sae, model, images, EvaluateParams(cross_entropy=False), Job()) for sae in saes]
    fvu = [point["fvu"].sel(token_kind="all").item() for point in data]
    assert fvu == sorted(fvu, reverse=True)
    assert 0 < fvu[3] < fvu[0] < 1
    assert [point["l0"].sel(token_kind="all").item() for point in data] == [1, 4, 8, 12, 16]
    assert [point["sparsity_setting"].item() for point in data][:2] == ["k = 1", "k = 4"]


def test_neurons_are_encoded_and_ranked_as_latents_are(activations, tmp_path):
    sae = basis(activations, sign="positive", centre="zeros")
    codes = encode_latents(activations, sae, EncodeParams(), Job(tmp_path)).load()
    x = activations["mlp_post"].sel(layer=1).values
    np.testing.assert_array_equal(dense_latents(codes, range(16)).values, np.maximum(x, 0))
    ranking = rank_images(codes, RankParams(top=1), Job())
    highest = np.maximum(x, 0).max(1)
    for neuron in np.flatnonzero(highest.any(0)):
        best = ranking.sel(latent=neuron, rank=0)
        assert best["top_image"].item() == f"image-{highest[:, neuron].argmax()}"
        assert best["top_activation"].item() == highest[:, neuron].max()
    assert ranking["architecture"].item() == "neurons"


def test_coordinates_of_the_residual_stream_are_neurons_too(activations):
    sae = basis(activations, site="resid_post", layer="last", tokens="cls")
    assert (sae.attrs["layer"], sae.attrs["tokens"], sae.sizes["d_model"]) == (1, "cls", 8)
    cls = activations["resid_post"].sel(layer=1).values[:, 0].astype(np.float64)
    np.testing.assert_allclose(sae["b_dec"], cls.mean(0), rtol=1e-6)


def test_what_is_not_there_is_refused(activations):
    with pytest.raises(StepError, match="several sites are stored: set site to one of mlp_post, resid_post"):
        basis(activations, site=None)
    with pytest.raises(StepError, match=r"layer 7 of 'mlp_post' is not stored: set layer to .* \[0, 1\]"):
        basis(activations, layer=7)
    with pytest.raises(StepError, match="k = 33 is more than the dictionary's 32 latents"):
        basis(activations, k=33)
