from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from pydantic import ValidationError

from prisma_steps import schema
from prisma_steps.analysis.attribution import attribute
from prisma_steps.job import Job
from prisma_steps.models.loading import load_model
from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.step import Artifact, StepError
from prisma_steps.steps import attribute_logits as module
from prisma_steps.steps.attribute_logits import Params, attribute_logits
from tests.artifacts import saved, scaled
from tests.models.families import make

NAMES = ["square", "ellipse", "heart"]
CONFIG = ToyViTConfig(
    n_layers=2,
    d_model=12,
    n_heads=3,
    d_mlp=20,
    patch_size=4,
    image_size=8,
    n_channels=1,
    n_classes=3,
    pooling="mean",
    n_registers=1,
)

#: Logits of size 1 in float32.
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Artifact:
    vit = ToyViT.initialised(CONFIG, torch.Generator().manual_seed(0))
    named = xr.Dataset(coords={"class_name": ("class", NAMES)})
    return saved(vit, tmp_path_factory.mktemp("model"), named)


@pytest.fixture(scope="module")
def images() -> xr.Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 1, 8, 8), "uint8")
    return xr.Dataset(
        {"pixels": (("image", "channel", "row", "column"), pixels)},
        coords={
            "image": [f"i{n}" for n in range(7)],
            "label": ("image", np.arange(7) % 3),
            "class_name": ("class", NAMES),
        },
    )


@pytest.fixture(scope="module")
def logits(model, images) -> np.ndarray:
    return load_model(model)(scaled(images)).numpy()


def attributed(model: Artifact, images: xr.Dataset, **params) -> xr.Dataset:
    return attribute_logits(model, images, Params(**params), Job()).load()


def test_artifact_fits_the_schema(model, images):
    found = attributed(model, images, by_token=True, minus="runner_up")
    schema.check(found, schema.Attribution)
    assert found["logit_contribution"].dims == ("image", "component")
    assert found["token_logit_contribution"].dims == ("image", "component", "token")
    assert found["component"].values.tolist() == [
        *("embedding", "position", "register_token"),
        *("head_0.0", "head_0.1", "head_0.2", "attn_bias_0", "mlp_0", "mlp_bias_0"),
        *("head_1.0", "head_1.1", "head_1.2", "attn_bias_1", "mlp_1", "mlp_bias_1"),
        *("final_norm_bias", "unembedding_bias"),
    ]
    assert found["component_kind"].values.tolist()[2:5] == ["register_token", "head", "head"]
    assert found["component_layer"].values.tolist() == [-1] * 3 + [0] * 6 + [1] * 6 + [-1] * 2
    head = found.set_xindex("component_head").sel(component_head=2)
    assert head["component"].values.tolist() == ["head_0.2", "head_1.2"]
    assert all({"long_name", "units"} <= set(found[name].attrs) for name in found.variables)


def test_components_sum_to_the_labels_logit(model, images, logits):
    found = attributed(model, images)
    expected = logits[np.arange(7), images["label"].values]
    np.testing.assert_allclose(found["attributed_logit"], expected, **CLOSE)
    np.testing.assert_allclose(found["logit_contribution"].sum("component"), expected, **CLOSE)
    np.testing.assert_array_equal(found["attributed_class"], images["label"])
    assert "subtracted_class" not in found


def test_top_and_runner_up(model, images, logits):
    found = attributed(model, images, logit="top1", minus="runner_up")
    order = np.argsort(-logits)
    np.testing.assert_array_equal(found["attributed_class"], order[:, 0])
    np.testing.assert_array_equal(found["subtracted_class"], order[:, 1])
    total = found["logit_contribution"].sum("component")
    np.testing.assert_allclose(total, np.sort(logits)[:, 2] - np.sort(logits)[:, 1], **CLOSE)
    assert (total > 0).all() and "label" not in found


def test_the_runner_up_of_a_label_is_the_highest_other_class(model, images, logits):
    found = attributed(model, images, minus="runner_up")
    label = images["label"].values
    for image in range(7):
        others = [number for number in range(3) if number != label[image]]
        assert found["subtracted_class"][image] == max(others, key=lambda number: logits[image, number])


def test_classes_by_name_and_number(model, images, logits):
    found = attributed(model, images, logit="heart", minus=0)
    assert set(found["attributed_class"].values) == {2} and set(found["subtracted_class"].values) == {0}
    np.testing.assert_allclose(found["attributed_logit"], logits[:, 2] - logits[:, 0], **CLOSE)


def test_tokens_sum_to_their_component(model, images):
    found = attributed(model, images, by_token=True)
    of_tokens = found["token_logit_contribution"]
    summed = of_tokens.sum("token", skipna=False).isel(component=slice(-1))
    np.testing.assert_allclose(summed, found["logit_contribution"].isel(component=slice(-1)), **CLOSE)
    assert of_tokens.sel(component="unembedding_bias").isnull().all()
    register = of_tokens[..., of_tokens["token_kind"].values == "register"].drop_sel(
        component="unembedding_bias"
    )
    assert (register == 0).all()  # the mean is of patches alone


def test_numbers_are_those_of_the_kernel_whatever_the_block(model, images, monkeypatch):
    vit = load_model(model)
    expected = attribute(vit, scaled(images), torch.from_numpy(images["label"].values))
    monkeypatch.setattr(module, "BLOCK_BYTES", 1)
    assert attribute_logits(model, images, Params(), Job()).size == 1
    found = attributed(model, images)["logit_contribution"]
    np.testing.assert_allclose(found, expected.contribution, **CLOSE)
    parts = [attributed(model, images, parts=3, part=part)["logit_contribution"] for part in range(3)]
    np.testing.assert_allclose(xr.concat(parts, "image"), expected.contribution, **CLOSE)


def test_a_table_for_plots_is_one_line(model, images):
    table = attributed(model, images)["logit_contribution"].to_dataframe().reset_index()
    assert {"component", "component_layer", "component_head", "label", "logit_contribution"} <= set(table)
    assert len(table) == 7 * 17


def test_bad_input(model, images, tmp_path):
    with pytest.raises(ValidationError, match="`minus` is 'label', as `logit` is: the difference is 0"):
        Params(minus="label")
    with pytest.raises(ValidationError, match="`logit` cannot be runner_up"):
        Params(logit="runner_up")
    with pytest.raises(StepError, match="no class 'hart'. Did you mean 'heart'?"):
        attributed(model, images, logit="hart")
    with pytest.raises(StepError, match="no class 3: the model has classes 0 to 2"):
        attributed(model, images, minus=3)
    with pytest.raises(StepError, match="n_images is 8, but there are only 7 images"):
        attributed(model, images, n_images=8)
    with pytest.raises(StepError, match="the images have no classes"):
        attributed(model, images.drop_vars("label"))
    strange = images.assign_coords(class_name=("class", ["cat", "dog", "newt"]))
    with pytest.raises(StepError, match="or set `logit` and `minus` to top1, runner_up, or a class"):
        attributed(model, strange)
    assert attributed(model, strange, logit="top1").sizes["image"] == 7
    with pytest.raises(StepError, match="attribute_logits: the model has no classes"):
        attributed(saved(make("vit bare").model, tmp_path), images)
