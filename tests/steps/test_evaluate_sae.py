from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from transformers import ViTConfig, ViTModel

from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.schema import Quality, check
from prisma_steps.step import Artifact, Job, StepError
from prisma_steps.steps.evaluate_sae import Params, evaluate_sae
from prisma_steps.steps.train_probe import Params as ProbeParams
from prisma_steps.steps.train_probe import train_probe
from prisma_steps.steps.train_sae import Params as TrainParams
from prisma_steps.steps.train_sae import train_sae
from tests.artifacts import left, saved

N_IMAGES = 12
CONFIG = ToyViTConfig(
    n_layers=2, d_model=8, n_heads=2, d_mlp=16, patch_size=4, image_size=8, n_channels=1, n_classes=3
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Artifact:
    folder = tmp_path_factory.mktemp("model")
    vit = ToyViT.initialised(CONFIG, torch.Generator().manual_seed(0))
    return saved(vit, folder)


@pytest.fixture(scope="module")
def images() -> xr.Dataset:
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            "pixels": (
                ("image", "channel", "row", "column"),
                rng.integers(0, 256, (N_IMAGES, 1, 8, 8), np.uint8),
            )
        },
        coords={
            "image": [f"image-{number}" for number in range(N_IMAGES)],
            "label": ("image", np.arange(N_IMAGES) % 3),
            "class_name": ("class", ["a", "b", "c"]),
        },
    )


@pytest.fixture(scope="module")
def activations() -> xr.Dataset:
    """Of another model: what the dictionary knows of this one does not matter here."""
    values = np.random.default_rng(1).standard_normal((40, 2, 5, 8)).astype(np.float32)
    return xr.Dataset(
        {
            "resid_post": (("image", "layer", "token", "d_model"), values),
            "embed": (("image", "token", "d_model"), values[:, 0]),
        },
        coords={"layer": [0, 1], "token_kind": ("token", np.array(["cls", *["patch"] * 4]))},
    )


def dictionary(activations: xr.Dataset, **changes) -> xr.Dataset:
    settings = {"site": "resid_post", "layer": 1, "k": 2, "expansion": 2, "batch_size": 50, **changes}
    return train_sae(activations, TrainParams(**settings), Job())


def test_the_result_is_labelled_quality_with_the_dictionarys_place(activations, model, images):
    data = evaluate_sae(dictionary(activations), model, images, Params(), Job())
    check(data, Quality)
    assert data["token_kind"].values.tolist() == ["all", "cls", "patch"]
    assert data["n_tokens"].values.tolist() == [5 * N_IMAGES, N_IMAGES, 4 * N_IMAGES]
    assert data["l0"].values.tolist() == pytest.approx([2, 2, 2], abs=0.5)
    place = {name: data.coords[name].item() for name in ("site", "layer", "architecture", "sparsity_setting")}
    expected = {"site": "resid_post", "layer": 1, "architecture": "topk", "sparsity_setting": "k = 2"}
    assert place == expected
    assert all({"long_name", "units"} <= set(variable.attrs) for variable in data.variables.values())
    assert data["ce_error_term"].item() == pytest.approx(data["ce"].item(), abs=1e-6)


def test_images_and_their_classes_reach_the_model(activations, model, images):
    """CE is that of the model on these pixels and labels, and moves when the labels do."""
    sae = dictionary(activations)
    from prisma_steps.models.loading import load_model

    logits = load_model(model)(torch.from_numpy(images["pixels"].values).float() / 255).double()
    for shift in (0, 1):
        shifted = images.assign_coords(label=(images["label"] + shift) % 3)
        classes = torch.from_numpy(shifted["label"].values)
        expected = torch.nn.functional.cross_entropy(logits, classes).item()
        found = evaluate_sae(sae, model, shifted, Params(batch_size=5), Job())["ce"].item()
        assert found == pytest.approx(expected, abs=1e-6)


def test_a_part_of_the_images_is_the_first(activations, model, images):
    sae = dictionary(activations)
    part = evaluate_sae(sae, model, images, Params(n_images=5, batch_size=2), Job())
    first = evaluate_sae(sae, model, images.isel(image=slice(5)), Params(batch_size=2), Job())
    xr.testing.assert_identical(part, first)


def test_a_dictionary_of_cls_is_evaluated_on_cls(activations, model, images):
    data = evaluate_sae(dictionary(activations, tokens="cls"), model, images, Params(), Job())
    assert data["token_kind"].values.tolist() == ["all", "cls"]
    assert data["n_tokens"].values.tolist() == [N_IMAGES, N_IMAGES]


def test_a_site_that_exists_once_has_no_layer(activations, model, images):
    patches = activations[["embed"]].isel(token=slice(1, None))
    data = evaluate_sae(dictionary(patches, site="embed", layer="last"), model, images, Params(), Job())
    assert "layer" not in data.coords
    assert data["token_kind"].values.tolist() == ["all", "patch"]


def test_too_few_images_are_refused(activations, model, images):
    with pytest.raises(StepError, match="n_images = 13, but there are only 12 images"):
        evaluate_sae(dictionary(activations), model, images, Params(n_images=13), Job())


def test_a_dictionary_of_another_model_is_refused(activations, model, images):
    foreign = dictionary(activations.assign_coords(layer=[0, 7]), layer=7)
    with pytest.raises(StepError, match="does not belong to this model: no layer 7 .* layers 0 to 1"):
        evaluate_sae(foreign, model, images, Params(), Job())


def test_a_model_without_classes_is_sent_to_a_probe_and_can_be_evaluated_with_one(
    activations, images, tmp_path
):
    """A bare ViT of the dictionary's width; what a probe needs to be is tested with its own step."""
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=8,
        patch_size=4, num_channels=1,
    )  # fmt: skip
    torch.manual_seed(0)
    bare, sae = saved(ViTModel(config, add_pooling_layer=False), tmp_path / "bare"), dictionary(activations)
    with pytest.raises(
        StepError, match="no classes, and cross-entropies need logits.*train_probe.*templates"
    ):
        evaluate_sae(sae, bare, images, Params(), Job())
    probed = left(train_probe(bare, images, ProbeParams(test_fraction=0.3), Job()), tmp_path / "probed")
    data = evaluate_sae(sae, probed, images, Params(), Job())
    assert data["ce_error_term"].item() == pytest.approx(data["ce"].item(), abs=1e-6)


def test_more_classes_than_the_model_has_are_refused(activations, model, images):
    more = images.drop_vars("class_name").assign_coords(class_name=("class", list("abcd")))
    with pytest.raises(StepError, match="the images have 4 classes, the model 3"):
        evaluate_sae(dictionary(activations), model, more, Params(), Job())


def test_the_batch_size_is_not_in_the_key():
    assert Params.model_fields["batch_size"].json_schema_extra == {"not_in_key": True}
