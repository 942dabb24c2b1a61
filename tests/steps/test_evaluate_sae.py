from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from transformers import ViTConfig, ViTModel

from prisma_steps.job import Job
from prisma_steps.models.heads import ZeroShotHead, head_files
from prisma_steps.models.loading import load_model
from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.sae.autoencoder import Shape
from prisma_steps.schema import Quality, check
from prisma_steps.step import Artifact, Output, StepError
from prisma_steps.steps.evaluate_sae import Params, evaluate_sae
from prisma_steps.steps.train_probe import Params as ProbeParams
from prisma_steps.steps.train_probe import train_probe
from tests.artifacts import left, saved
from tests.sae.dictionaries import labelled, untrained

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


def dictionary(shape=None, **trained_on) -> xr.Dataset:
    """Of 16 latents: k is 2 of 8-dimensional activations in layer 1."""
    return labelled(untrained(shape or Shape(8, 16), k=2), **{"layer": 1, **trained_on})


def test_the_result_is_labelled_quality_with_the_dictionarys_place(model, images):
    data = evaluate_sae(dictionary(), model, images, Params(), Job())
    check(data, Quality)
    assert data["token_kind"].values.tolist() == ["all", "cls", "patch"]
    assert data["n_tokens"].values.tolist() == [5 * N_IMAGES, N_IMAGES, 4 * N_IMAGES]
    assert data["l0"].values.tolist() == pytest.approx([2, 2, 2], abs=0.5)
    assert set(data.sizes) == {"token_kind", "latent"}
    place = {name: data.coords[name].item() for name in ("site", "layer", "architecture", "sparsity_setting")}
    expected = {"site": "resid_post", "layer": 1, "architecture": "topk", "sparsity_setting": "k = 2"}
    assert place == expected
    assert all({"long_name", "units"} <= set(variable.attrs) for variable in data.variables.values())
    assert data["ce_error_term"].item() == pytest.approx(data["ce"].item(), abs=1e-6)


def test_images_and_their_classes_reach_the_model(model, images):
    """CE is that of the model on these pixels and labels, and moves when the labels do."""
    sae = dictionary()
    logits = load_model(model)(torch.from_numpy(images["pixels"].values).float() / 255).double()
    for shift in (0, 1):
        shifted = images.assign_coords(label=(images["label"] + shift) % 3)
        classes = torch.from_numpy(shifted["label"].values)
        expected = torch.nn.functional.cross_entropy(logits, classes).item()
        found = evaluate_sae(sae, model, shifted, Params(batch_size=5), Job())["ce"].item()
        assert found == pytest.approx(expected, abs=1e-6)


def test_a_part_of_the_images_is_the_first(model, images):
    sae = dictionary()
    part = evaluate_sae(sae, model, images, Params(n_images=5, batch_size=2), Job())
    first = evaluate_sae(sae, model, images.isel(image=slice(5)), Params(batch_size=2), Job())
    xr.testing.assert_identical(part, first)


def test_a_dictionary_of_cls_is_evaluated_on_cls(model, images):
    data = evaluate_sae(dictionary(tokens="cls"), model, images, Params(), Job())
    assert data["token_kind"].values.tolist() == ["all", "cls"]
    assert data["n_tokens"].values.tolist() == [N_IMAGES, N_IMAGES]


def test_a_site_that_exists_once_has_no_layer(model, images):
    sae = labelled(untrained(Shape(8, 16), k=2), site="embed")
    data = evaluate_sae(sae, model, images, Params(), Job())
    assert "layer" not in data.coords
    assert data["token_kind"].values.tolist() == ["all", "patch"]


def test_too_few_images_are_refused(model, images):
    with pytest.raises(StepError, match="n_images = 13, but there are only 12 images"):
        evaluate_sae(dictionary(), model, images, Params(n_images=13), Job())


def test_a_dictionary_of_another_model_is_refused(model, images):
    foreign = dictionary(layer=7)
    with pytest.raises(StepError, match="does not belong to this model: no layer 7 .* layers 0 to 1"):
        evaluate_sae(foreign, model, images, Params(), Job())


def test_a_crosscoders_metrics_are_along_layer(model, images):
    sae = dictionary(Shape(8, 16, n_layers=2), layers=[1, 0])
    data = evaluate_sae(sae, model, images, Params(), Job())
    check(data, Quality)
    assert data["layer"].values.tolist() == [1, 0]
    assert data["fvu"].dims == ("layer", "token_kind")
    assert data["l0"].dims == data["n_tokens"].dims == ("token_kind",)
    assert data["ce_reconstruction"].dims == ("layer",)
    assert data["ce"].dims == ()
    np.testing.assert_allclose(data["ce_error_term"], data["ce"].item(), atol=1e-6)


def test_a_crosscoder_of_one_layer_twice_is_its_autoencoder_where_it_is_judged(model, images):
    """Layers are told apart: with the second layer's encoder at 0, the first's FVU is the autoencoder's."""
    single = untrained(Shape(8, 16, subtract_b_dec=False), k=2)
    both = untrained(Shape(8, 16, n_layers=2), k=2)
    for name in ("W_enc", "W_dec", "b_dec"):
        getattr(both, name).zero_()
    both.W_enc[:8], both.W_dec[:, :8], both.b_dec[:8] = single.W_enc, single.W_dec, single.b_dec
    expected = evaluate_sae(labelled(single, layer=0), model, images, Params(), Job())
    data = evaluate_sae(labelled(both, layers=[0, 1]), model, images, Params(), Job())
    np.testing.assert_allclose(data["fvu"].sel(layer=0), expected["fvu"], rtol=1e-6)
    np.testing.assert_allclose(data["l0"], expected["l0"])
    assert data["ce_reconstruction"].sel(layer=0).item() == pytest.approx(
        expected["ce_reconstruction"].item(), abs=1e-6
    )


def test_a_transcoder_names_its_target(model, images):
    sae = dictionary(Shape(8, 16, d_target=8), site="ln2_out", target_site="mlp_out")
    data = evaluate_sae(sae, model, images, Params(), Job())
    check(data, Quality)
    assert data.coords["target_site"].item() == "mlp_out"
    assert data["fvu"].dims == ("token_kind",)


def test_a_transcoder_between_other_tokens_is_refused(model, images):
    sae = dictionary(Shape(8, 16, d_target=8), site="embed", target_site="mlp_out")
    with pytest.raises(StepError, match="mlp_out has not the tokens of embed"):
        evaluate_sae(sae, model, images, Params(), Job())


def test_images_without_classes_can_be_evaluated_on(model, images):
    sae = dictionary()
    nameless = images.drop_vars(["label", "class_name"])
    data = evaluate_sae(sae, model, nameless, Params(cross_entropy=False), Job())
    check(data, Quality)
    expected = evaluate_sae(sae, model, images, Params(), Job())
    xr.testing.assert_identical(data, expected[list(data.variables)])
    assert not any(name.startswith(("ce", "top1")) for name in data)
    with pytest.raises(StepError, match="the images have no classes"):
        evaluate_sae(sae, model, nameless, Params(), Job())


def test_more_classes_than_the_models_are_refused(model, images):
    more = images.drop_vars("class_name").assign_coords({"class": ["a", "b", "c", "d"]})
    with pytest.raises(StepError, match="the images are of 4 classes .* 3 apart .*cross_entropy: false"):
        evaluate_sae(dictionary(), model, more, Params(), Job())


def test_a_zero_shot_head_is_evaluated_with_and_without_its_temperature(images, tmp_path):
    import transformers as hf

    config = hf.CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
        num_channels=1,
        projection_dim=5,
    )
    torch.manual_seed(0)
    vision = hf.CLIPVisionModelWithProjection(config).eval()
    text = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    folder = tmp_path / "clip"
    saved(vision, folder)
    clip = left(Output(xr.Dataset(), head_files(ZeroShotHead(text, 50.0))), folder)
    data = evaluate_sae(dictionary(), clip, images, Params(), Job())
    check(data, Quality)
    logits = load_model(clip)(torch.from_numpy(images["pixels"].values).float() / 255).double()
    classes = torch.from_numpy(images["label"].values)
    for name, values in (("ce", logits), ("ce_without_temperature", logits / 50)):
        expected = torch.nn.functional.cross_entropy(values, classes).item()
        # Logits are float32 of order 50.
        assert data[name].item() == pytest.approx(expected, abs=1e-5)
    assert data["top1"].item() == (logits.argmax(1) == classes).double().mean().item()
    assert {"ce_recovered", "ce_recovered_without_temperature"} <= set(data)


def headless(folder: Path) -> Artifact:
    """A bare ViT of the dictionary's width."""
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=8,
        patch_size=4, num_channels=1,
    )  # fmt: skip
    torch.manual_seed(0)
    return saved(ViTModel(config, add_pooling_layer=False).eval(), folder)


def test_a_model_without_classes_needs_to_be_told(images, tmp_path):
    bare = headless(tmp_path)
    with pytest.raises(StepError, match="the model has no classes.*train_probe.*cross_entropy: false"):
        evaluate_sae(dictionary(), bare, images, Params(), Job())
    data = evaluate_sae(dictionary(), bare, images, Params(cross_entropy=False), Job())
    assert data["n_tokens"].values.tolist() == [5 * N_IMAGES, N_IMAGES, 4 * N_IMAGES]


def test_a_model_without_classes_is_sent_to_a_probe_and_can_be_evaluated_with_one(images, tmp_path):
    """What a probe needs to be is tested with its own step."""
    bare, sae = headless(tmp_path / "bare"), dictionary()
    with pytest.raises(StepError, match="no classes, .*train_probe.*templates.*cross_entropy: false"):
        evaluate_sae(sae, bare, images, Params(), Job())
    probed = left(train_probe(bare, images, ProbeParams(test_fraction=0.3), Job()), tmp_path / "probed")
    data = evaluate_sae(sae, probed, images, Params(), Job())
    # x̂ + (x − x̂) is x to rounding, which the steep logits of a probe fitted to 12 images magnify.
    assert data["ce_error_term"].item() == pytest.approx(data["ce"].item(), abs=1e-5)


def test_the_batch_size_is_not_in_the_key():
    assert Params.model_fields["batch_size"].json_schema_extra == {"not_in_key": True}
