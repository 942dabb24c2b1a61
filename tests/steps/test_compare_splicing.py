from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from prisma_steps import schema
from prisma_steps.job import Job
from prisma_steps.models.loading import load_model
from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.sae.autoencoder import Shape
from prisma_steps.sae.neurons import neuron_basis
from prisma_steps.sae.placed import as_splice
from prisma_steps.seeding import torch_generator
from prisma_steps.step import Artifact, StepError
from prisma_steps.steps.compare_splicing import Params, compare_splicing
from tests.artifacts import saved, scaled
from tests.sae.dictionaries import labelled
from tests.sae.published import dictionary

CONFIG = ToyViTConfig(
    n_layers=3, d_model=12, n_heads=2, d_mlp=24, patch_size=4, image_size=8, n_channels=1, n_classes=3
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    vit = ToyViT.initialised(CONFIG, torch_generator(0, "weights"))
    names = xr.Dataset(coords={"class_name": ("class", ["square", "ellipse", "heart"])})
    return saved(vit, tmp_path_factory.mktemp("model"), names)


@pytest.fixture(scope="module")
def images() -> xr.Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), "uint8")
    return xr.Dataset(
        {"pixels": (("image", "channel", "row", "column"), pixels)},
        coords={"image": [f"image-{number}" for number in range(5)], "label": ("image", [0, 1, 2, 0, 1])},
    )


def sae_of(**place: Any) -> xr.Dataset:
    made = dictionary("relu", Shape(12, 30, normalise="expected_norm"), norm_factor=1.4)
    return labelled(made, **{"layer": 1, **place})


def compare(model: Artifact, images: xr.Dataset, sae: xr.Dataset, **params: Any) -> xr.Dataset:
    found = compare_splicing(sae, model, images, Params(**params), Job())
    schema.check(found, schema.Splicing)
    return found


def test_the_artifact_is_labelled(model: Artifact, images: xr.Dataset) -> None:
    found = compare(model, images, sae_of(), chosen_images=["image-3", 1])
    assert dict(found.sizes) == {"image": 2, "token": 5, "run": 3, "class": 3, "head": 2, "key_token": 5}
    assert found["image"].values.tolist() == ["image-3", "image-1"]
    assert found["label"].values.tolist() == [0, 1]
    assert found["run"].values.tolist() == ["clean", "reconstruction", "error_term"]
    assert found["class_name"].values.tolist() == ["square", "ellipse", "heart"]
    assert found["token_kind"].values.tolist() == ["cls", *["patch"] * 4]
    assert found.attrs == {"attention_layer": 2}  # the first that reads resid_post of layer 1
    assert all({"long_name", "units"} <= set(variable.attrs) for variable in found.variables.values())
    np.testing.assert_allclose(found["probability"].sum("class"), 1, atol=1e-6)
    np.testing.assert_allclose(found["cls_attention"].sum("key_token"), 1, atol=1e-6)


@torch.no_grad()
def test_runs_are_those_of_the_model(model: Artifact, images: xr.Dataset) -> None:
    sae = sae_of()
    found = compare(model, images, sae, chosen_images=[0, 1, 2, 3, 4])
    vit, splice, pixels = load_model(model), as_splice(sae), scaled(images)
    x = vit.read(pixels, ["resid_post"], [1])["resid_post", 1]
    x_hat = splice.dictionary.decode(splice.dictionary.encode(x), x)
    logits, patterns = vit.run_with_hooks(pixels, {("resid_post", 1): lambda _: x_hat}), {}

    def keep(pattern: torch.Tensor) -> torch.Tensor:
        patterns["spliced"] = pattern
        return pattern

    vit.run_with_hooks(pixels, {("resid_post", 1): lambda _: x_hat, ("pattern", 2): keep})
    plain = vit.read(pixels, ["pattern"], [2])["pattern", 2]
    # float32, values of about 1
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
    for name, value in {"value": x, "reconstruction": x_hat, "error": x - x_hat}.items():
        np.testing.assert_allclose(found[f"{name}_norm"], value.norm(dim=-1), **close)
    np.testing.assert_allclose(found["logit"].sel(run="clean"), vit(pixels), **close)
    np.testing.assert_allclose(found["logit"].sel(run="reconstruction"), logits, **close)
    assert abs(found["logit"].sel(run="reconstruction") - found["logit"].sel(run="clean")).max() > 0.01
    np.testing.assert_allclose(found["cls_attention"].sel(run="clean"), plain[:, :, 0], **close)
    spliced = patterns["spliced"][:, :, 0]
    np.testing.assert_allclose(found["cls_attention"].sel(run="reconstruction"), spliced, **close)


def test_the_error_term_restores_the_clean_run(model: Artifact, images: xr.Dataset) -> None:
    found = compare(model, images, sae_of(), chosen_images=[0, 1, 2])
    for name in ("logit", "probability", "cls_attention"):
        np.testing.assert_array_equal(found[name].sel(run="error_term"), found[name].sel(run="clean"))


def test_a_perfect_dictionary_changes_nothing(model: Artifact, images: xr.Dataset) -> None:
    perfect = labelled(neuron_basis(torch.zeros(12), "both", None), layer=0)
    found = compare(model, images, perfect, chosen_images=[0, 1, 2])
    # x = relu(x) − relu(−x) is exact but for the order of sums in float32
    np.testing.assert_allclose(found["error_norm"], 0, atol=1e-6)
    for name in ("logit", "cls_attention"):
        reconstruction, clean = (found[name].sel(run=run) for run in ("reconstruction", "clean"))
        np.testing.assert_allclose(reconstruction, clean, atol=1e-5)


def test_tokens_of_no_dictionary_are_missing(model: Artifact, images: xr.Dataset) -> None:
    found = compare(model, images, sae_of(tokens="patch"))
    assert np.isnan(found["error_norm"].values).tolist() == [[True, False, False, False, False]]


def test_in_the_last_block_there_is_no_attention_to_compare(model: Artifact, images: xr.Dataset) -> None:
    found = compare(model, images, sae_of(layer=2))
    assert "cls_attention" not in found
    with pytest.raises(StepError, match="attention_layer is 1; the blocks whose attention reads"):
        compare(model, images, sae_of(), attention_layer=1)


def test_bad_images(model: Artifact, images: xr.Dataset) -> None:
    with pytest.raises(
        StepError, match="no image 5. `chosen_images` holds places from 0 to 4, or ids such as 'image-0'"
    ):
        compare(model, images, sae_of(), chosen_images=[5])
    with pytest.raises(StepError, match="'image-1' is an image that `chosen_images` names already"):
        compare(model, images, sae_of(), chosen_images=[1, "image-1"])
    with pytest.raises(StepError, match="does not belong to this model"):
        compare(model, images, sae_of(layer=9))
