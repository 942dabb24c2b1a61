from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from pydantic import ValidationError

from prisma_steps import schema
from prisma_steps.axes import Axis
from prisma_steps.hypercube import combine
from prisma_steps.job import Job
from prisma_steps.models.loading import load_model
from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.step import Artifact, StepError
from prisma_steps.steps import extract_activations as module
from prisma_steps.steps.extract_activations import Params, extract_activations
from prisma_steps.steps.load_images import Params as ImagesParams
from prisma_steps.steps.load_images import load_images
from tests.artifacts import saved, scaled
from tests.models.families import make

CONFIG = ToyViTConfig(
    n_layers=3, d_model=12, n_heads=3, d_mlp=20, patch_size=4, image_size=8, n_channels=1, n_classes=10
)


@pytest.fixture(scope="module")
def images() -> xr.Dataset:
    return load_images(ImagesParams(dataset="digits", n_images=23), Job()).load()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Artifact:
    return saved(
        ToyViT.initialised(CONFIG, torch.Generator().manual_seed(0)), tmp_path_factory.mktemp("model")
    )


def extract(model: Artifact, images: xr.Dataset, **params) -> xr.Dataset:
    return extract_activations(model, images, Params(**params), Job()).load()


def in_order(model: Artifact, images: xr.Dataset, site: str, layers=None) -> np.ndarray:
    """The activations of all images at once, [image, layer, ...]."""
    _, cache = load_model(model).run_with_cache(scaled(images), [site], layers)
    if (site, None) in cache:
        return cache[site, None].numpy()
    return torch.stack([cache[site, layer] for layer in layers or range(3)], 1).numpy()


#: float32 values of size 1; another batch size is another order of summation.
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.mark.parametrize("site", [site for site in schema.SITE_DIMS])
def test_every_site_is_that_of_run_with_cache(model, images, site):
    data = extract(model, images, sites=[site], batch_size=5)
    schema.check(data, schema.Activations)
    once = site in schema.SITES_WITHOUT_LAYER
    image, *rest = schema.SITE_DIMS[site]
    assert data[site].dims == ((image, *rest) if once else (image, "layer", *rest))
    np.testing.assert_allclose(data[site], in_order(model, images, site), **CLOSE)


def test_labels_tell_image_layer_and_token(model, images):
    data = extract(model, images, sites=["resid_post", "pattern", "logits"])
    np.testing.assert_array_equal(data["image"], images["image"])
    np.testing.assert_array_equal(data["label"], images["label"])
    assert data["layer"].values.tolist() == [0, 1, 2]
    assert data["token"].values.tolist() == [0, 1, 2, 3, 4]
    assert data["token_kind"].values.tolist() == ["cls"] + 4 * ["patch"]
    assert data["patch_row"].values.tolist() == [-1, 0, 0, 1, 1]
    assert data["query_token"].values.tolist() == data["key_token"].values.tolist() == [0, 1, 2, 3, 4]
    assert data["class_name"].values.tolist() == list("0123456789")
    assert data["resid_post"].attrs["long_name"] == "residual stream after the block"


def test_logits_of_other_classes_than_the_images_have_the_models_names_and_no_labels(images, tmp_path):
    config = ToyViTConfig(**{**CONFIG.to_diff_dict(), "n_classes": 3})
    vit = ToyViT.initialised(config, torch.Generator().manual_seed(0))
    named = xr.Dataset(coords={"class_name": ("class", ["cat", "dog", "newt"])})
    for number, (known, expected) in enumerate([(named, ["cat", "dog", "newt"]), (None, None)]):
        other = saved(vit, tmp_path / str(number), known)
        logits = extract(other, images, sites=["logits"])
        assert "label" not in logits.coords and logits.sizes["class"] == 3
        assert ("class_name" in logits.coords) == (expected is not None)
        assert expected is None or logits["class_name"].values.tolist() == expected
        residuals = extract(other, images, sites=["resid_post"])
        np.testing.assert_array_equal(residuals["label"], images["label"])
        assert residuals["class_name"].values.tolist() == list("0123456789")


@pytest.mark.parametrize(("layers", "numbers"), [("last", [2]), ([2, 0], [2, 0]), ("all", [0, 1, 2])])
def test_layers_are_chosen_by_number(model, images, layers, numbers):
    data = extract(model, images, sites=["attn_out"], layers=layers)
    assert data["layer"].values.tolist() == numbers
    np.testing.assert_allclose(data["attn_out"], in_order(model, images, "attn_out", numbers), **CLOSE)


@pytest.mark.parametrize(("tokens", "numbers"), [("cls", [0]), ("patch", [1, 2, 3, 4])])
def test_tokens_are_chosen_by_kind_and_keep_their_numbers(model, images, tokens, numbers):
    data = extract(model, images, sites=["resid_mid", "q"], tokens=tokens)
    assert data["token"].values.tolist() == numbers
    assert set(data["token_kind"].values) == {tokens}
    whole = extract(model, images, sites=["resid_mid", "q"])
    xr.testing.assert_identical(data, whole.sel(token=numbers))


def test_embed_has_the_tokens_of_the_patches(model, images):
    data = extract(model, images, sites=["embed", "resid_pre"], tokens="patch")
    assert data["token"].values.tolist() == extract(model, images, sites=["embed"])["token"].values.tolist()
    for changes in ({"sites": ["embed", "resid_pre"]}, {"sites": ["embed"], "tokens": "cls"}):
        with pytest.raises(StepError, match="'embed' has no CLS token"):
            extract(model, images, **changes)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("beit", {"sites": ["ln_final"]}, "the model pools before 'ln_final'"),
        ("clip", {"sites": ["ln_final", "resid_post"]}, "'ln_final' has no tokens but CLS"),
        ("siglip bare", {"sites": ["resid_post"], "tokens": "cls"}, "'resid_post' has no such token"),
    ],
)
def test_sites_without_the_tokens_asked_for_are_refused(name, params, message, tmp_path):
    model = make(name)
    pixels = np.zeros((2, *model.input_shape), np.uint8)
    images = xr.Dataset({"pixels": (("image", "channel", "row", "column"), pixels)}, {"image": ["a", "b"]})
    with pytest.raises(StepError, match=f"extract_activations: .*{message}"):
        extract(saved(model.model, tmp_path), images, **params)


def test_batch_size_changes_nothing_and_stays_out_of_the_key(model, images):
    whole = extract(model, images, sites=["resid_post"], batch_size=23)
    for size in (1, 4, 100):
        other = extract(model, images, sites=["resid_post"], batch_size=size)
        xr.testing.assert_allclose(other, whole, **CLOSE)
    assert Params.model_fields["batch_size"].json_schema_extra == {"not_in_key": True}


def test_blocks_are_whole_batches_and_make_up_the_whole(model, images, monkeypatch):
    whole = extract(model, images, sites=["resid_post", "logits"], batch_size=4)
    per_image = (3 * 5 * 12 + 10) * 4
    monkeypatch.setattr(module, "BLOCK_BYTES", 11 * per_image)
    asked = Params(sites=["resid_post", "logits"], batch_size=4)
    blocks = extract_activations(model, images, asked, Job())
    assert blocks.size == 8
    xr.testing.assert_identical(blocks.load(), whole)
    last = blocks.make(slice(16, 23))
    assert set(last.coords) == {"image"}
    np.testing.assert_array_equal(last["image"], images["image"][16:])
    np.testing.assert_array_equal(last["logits"], whole["logits"][16:])


def test_first_images_only(model, images):
    data = extract(model, images, sites=["logits"], n_images=7)
    xr.testing.assert_allclose(data, extract(model, images, sites=["logits"]).isel(image=slice(7)), **CLOSE)
    with pytest.raises(StepError, match="n_images is 24, but there are only 23 images"):
        extract(model, images, sites=["logits"], n_images=24)


@pytest.mark.parametrize(("parts", "n_images"), [(3, 21), (7, 21), (1, None)])
def test_parts_are_the_whole_bit_for_bit(model, images, parts, n_images):
    """Cut where batches end: another batch is another order of summation."""
    asked = {"sites": ["resid_post", "logits"], "n_images": n_images, "batch_size": 1 if parts == 7 else 7}
    made = [extract(model, images, **asked, parts=parts, part=part) for part in range(parts)]
    whole = extract(model, images, **asked)
    xr.testing.assert_identical(combine(made, [Axis("part", {"part": tuple(range(parts))}, "image")]), whole)


def test_more_parts_than_images_are_refused(model, images):
    with pytest.raises(StepError, match="parts is 8, but there are only 7 images: set parts to 7 or less"):
        extract(model, images, sites=["logits"], n_images=7, parts=8, part=2)
    with pytest.raises(ValidationError, match="part 3 is not one of 3"):
        Params(sites=["logits"], parts=3, part=3)


def test_float16_is_asked_for(model, images):
    wide = extract(model, images, sites=["resid_post"])
    narrow = extract(model, images, sites=["resid_post"], storage_dtype="float16")
    assert wide["resid_post"].dtype == np.float32 and narrow["resid_post"].dtype == np.float16
    np.testing.assert_array_equal(narrow["resid_post"], wide["resid_post"].astype(np.float16))


@pytest.mark.parametrize(
    ("value", "params", "message"),
    [
        (1e5, {"storage_dtype": "float16"}, "resid_pre of layer 1 holds 1000.., which torch.float16"),
        (torch.nan, {}, "resid_pre of layer 1 holds nan"),
    ],
)
def test_values_that_cannot_be_stored_name_image_and_site(images, tmp_path, value, params, message):
    broken = ToyViT.initialised(CONFIG, torch.Generator().manual_seed(0))
    broken.blocks[0].mlp.fc2.bias.data[3] = value
    with pytest.raises(StepError, match=f"image '{images['image'].values[0]}': {message}"):
        extract(saved(broken, tmp_path), images, sites=["resid_pre"], **params)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"sites": ["q"], "layers": [3]}, "no layer 3 at site 'q': the model has layers 0 to 2"),
        ({"sites": ["q"], "layers": [-1]}, "no layer -1"),
    ],
)
def test_layers_that_are_not_there_are_refused(model, images, params, message):
    with pytest.raises(StepError, match=message):
        extract(model, images, **params)


def test_sites_that_the_model_lacks_are_refused(images, tmp_path):
    config = ToyViTConfig(**{**CONFIG.to_diff_dict(), "attention_only": True})
    bare = saved(ToyViT.initialised(config, torch.Generator().manual_seed(0)), tmp_path)
    with pytest.raises(StepError, match="no site 'mlp_out'.*Its sites: embed"):
        extract(bare, images, sites=["mlp_out"])


def test_images_that_do_not_fit_the_model_are_refused(model):
    sprites = load_images(ImagesParams(dataset="dsprites", n_images=2), Job()).load()
    with pytest.raises(StepError, match="64 × 64 pixels; the model takes .* 8 × 8 pixels"):
        extract(model, sprites, sites=["logits"])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"sites": []}, "at least 1"),
        ({"sites": ["resid"]}, "no such site: resid. Did you mean resid_pre"),
        ({"sites": ["q", "q"]}, "named once"),
        ({"sites": ["q"], "layers": [1, 1]}, "named once"),
        ({"sites": ["q"], "layers": []}, "name at least one"),
    ],
)
def test_parameters_without_sense_are_refused(params, message):
    with pytest.raises(ValidationError, match=message):
        Params(**params)


def test_a_pretrained_model_reads_images_of_another_size(focus_vit):
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModel

    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 40), dtype=np.uint8)
    images = xr.Dataset({"pixels": (("image", "channel", "row", "column"), pixels)}, {"image": ["a", "b"]})
    given = Params(sites=["resid_post", "pattern"], layers=[3], tokens="cls")
    found = extract_activations(Artifact(xr.Dataset(), focus_vit), images, given, Job()).load()
    pillow = [Image.fromarray(image.transpose(1, 2, 0)) for image in pixels]
    inputs = AutoImageProcessor.from_pretrained(focus_vit, backend="pil")(pillow, return_tensors="pt")
    reference = AutoModel.from_pretrained(focus_vit)(**inputs, output_hidden_states=True)
    # Float32 of activations up to some tens.
    np.testing.assert_allclose(
        found["resid_post"][:, 0, 0], reference.hidden_states[4][:, 0].detach(), rtol=0, atol=1e-4
    )
    assert found.sizes["key_token"] == 1 + 16 * 16


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        (("image", "frame", "channel", "row", "column"), "these are clips of 1 frames .* takes still images"),
        (("image", "channel", "row", "column"), "images of 2 channels .* takes still images of 1 channels"),
    ],
)
def test_clips_and_other_channels_are_refused(model, dims, message):
    shape = (2, 1, 1, 8, 8) if "frame" in dims else (2, 2, 8, 8)
    images = xr.Dataset({"pixels": (dims, np.zeros(shape, np.uint8))}, {"image": ["a", "b"]})
    with pytest.raises(StepError, match=message):
        extract_activations(model, images, Params(sites=["resid_post"]), Job())


def test_still_images_for_a_video_model_are_refused(tmp_path):
    config = ToyViTConfig(**{**CONFIG.to_diff_dict(), "n_frames": 4, "tubelet_size": 2})
    video = saved(ToyViT.initialised(config, torch.Generator().manual_seed(0)), tmp_path)
    dims = ("image", "channel", "row", "column")
    images = xr.Dataset({"pixels": (dims, np.zeros((2, 1, 8, 8), np.uint8))}, {"image": ["a", "b"]})
    with pytest.raises(StepError, match=r"these are still images .* takes clips of 4 frames of 1 channels"):
        extract(video, images, sites=["resid_post"])


@pytest.mark.parametrize(
    ("name", "site"), [("timesformer", "pattern"), ("clip classifier", "ln_final"), ("siglip bare", "logits")]
)
def test_sites_that_a_family_lacks_are_named(name, site, tmp_path):
    model = make(name)
    dims = ("image", *schema.IMAGE_DIMS[-len(model.input_shape) :])
    pixels = xr.Dataset(
        {"pixels": (dims, np.zeros((2, *model.input_shape), np.uint8))}, {"image": ["a", "b"]}
    )
    with pytest.raises(StepError, match=f"extract_activations: .*no site {site!r}"):
        extract(saved(model.model, tmp_path), pixels, sites=[site])
