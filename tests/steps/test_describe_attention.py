from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from pydantic import ValidationError

from prisma_steps import schema
from prisma_steps.analysis.attention import Description, grid_of, rollout
from prisma_steps.job import Job
from prisma_steps.models.loading import load_model
from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.step import Artifact, StepError
from prisma_steps.steps import describe_attention as module
from prisma_steps.steps.describe_attention import Params, describe_attention
from tests.artifacts import saved, scaled
from tests.models.families import make

CONFIG = {
    **dict(n_layers=2, d_model=12, n_heads=3, d_mlp=20, patch_size=4, image_size=12),
    **dict(n_channels=1, n_classes=3, n_registers=2),
}

#: Float32 patterns, from a forward pass of another batch size.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def toy(folder, **changes) -> Artifact:
    config = ToyViTConfig(**{**CONFIG, **changes})
    return saved(ToyViT.initialised(config, torch.Generator().manual_seed(0)), folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Artifact:
    return toy(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def images() -> xr.Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 1, 12, 12), "uint8")
    return xr.Dataset(
        {"pixels": (("image", "channel", "row", "column"), pixels)},
        coords={"image": [f"i{n}" for n in range(7)], "label": ("image", np.arange(7) % 3)},
    )


def described(model: Artifact, images: xr.Dataset, **params) -> xr.Dataset:
    return describe_attention(model, images, Params(**params), Job())


def test_artifact_fits_the_schema(model, images):
    found = described(model, images, chosen=["i3", 0])
    schema.check(found, schema.Attention)
    assert found["query_kind"].values.tolist() == ["all", "cls", "register", "patch"]
    assert found["key_kind"].values.tolist() == ["cls", "register", "patch"]
    assert found["head_type"].values.tolist() == [
        *("self", "previous_patch", "next_patch", "row", "column", "corner", "cls")
    ]
    assert found["n_images"] == 7 and found["image"].values.tolist() == ["i3", "i0"]
    assert found["label"].values.tolist() == [0, 0]
    assert found["pattern"].shape == (2, 2, 3, 12, 12)
    assert found["token_kind"].dims == ("key_token",)
    assert all({"long_name", "units"} <= set(found[name].attrs) for name in found.variables)
    assert found["attention_distance"].attrs["units"] == "pixel"


@pytest.mark.parametrize("pattern_bytes", [2**27, 1])
def test_numbers_are_those_of_the_kernel_on_all_patterns(model, images, monkeypatch, pattern_bytes):
    monkeypatch.setattr(module, "PATTERN_BYTES", pattern_bytes)  # all images at once, or one by one
    vit = load_model(model)
    cache = vit.read(scaled(images), ["pattern"])
    description = Description(grid_of(vit), 2)
    for layer in range(2):
        description.add(layer, cache["pattern", layer])
    found = described(model, images)
    for name, expected in description.results().items():
        np.testing.assert_allclose(found[name], expected, **CLOSE, err_msg=name)
    for name, expected in description.uniform().items():
        np.testing.assert_allclose(found[f"uniform_{name}"], expected, rtol=1e-12, err_msg=name)


def test_mass_of_cls_and_of_sinks_by_name(model, images):
    found = described(model, images)
    cache = load_model(model).read(scaled(images), ["pattern"])
    pattern = torch.stack([cache["pattern", layer] for layer in range(2)]).mean(1).numpy()
    cls_on_patches = found["attention_mass"].sel(query_kind="cls", key_kind="patch")
    np.testing.assert_allclose(cls_on_patches, pattern[:, :, 0, 3:].sum(-1), **CLOSE)
    sink = found["attention_mass"].sel(query_kind="patch", key_kind="cls")
    np.testing.assert_allclose(sink, pattern[:, :, 3:, 0].mean(-1), **CLOSE)
    np.testing.assert_allclose(found["head_score"].sel(head_type="cls"), sink, **CLOSE)
    np.testing.assert_allclose(found["attention_mass"].sum("key_kind"), 1, **CLOSE)


def test_patterns_and_rollout_of_chosen_images(model, images):
    found = described(model, images, chosen=["i3"], n_images=2)
    assert found["n_images"] == 2  # a chosen image need not be among those
    vit = load_model(model)
    cache = vit.read(scaled(images, [3]), ["pattern"])
    patterns = [cache["pattern", layer] for layer in range(2)]
    for layer, rolled in enumerate(rollout(patterns)):
        at = found.sel(image="i3", layer=layer)
        np.testing.assert_allclose(at["pattern"], patterns[layer][0], **CLOSE)
        np.testing.assert_allclose(at["attention_rollout"], rolled[0], **CLOSE)


def test_clips_are_followed_through_time(tmp_path):
    model = toy(tmp_path, n_frames=4, tubelet_size=2)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 1, 12, 12), "uint8")
    clips = xr.Dataset(
        {"pixels": (("image", "frame", "channel", "row", "column"), pixels)}, {"image": list("abc")}
    )
    found = described(model, clips, chosen=[0])
    assert found["head_type"].values.tolist()[-3:] == ["same_frame", "previous_frame", "next_frame"]
    assert found["attention_frame_distance"].dims == ("layer", "head")
    assert found["patch_frame"].values.tolist() == [-1] * 3 + [0] * 9 + [1] * 9
    np.testing.assert_allclose(found["uniform_attention_frame_distance"], 0.5)


def test_bad_input(model, images, tmp_path):
    with pytest.raises(
        StepError, match="no image 'x'. `chosen` holds places from 0 to 6, or ids such as 'i0'"
    ):
        described(model, images, chosen=["x"])
    with pytest.raises(StepError, match="no image 7"):
        described(model, images, chosen=[7])
    with pytest.raises(StepError, match="no image -1"):
        described(model, images, chosen=[-1])
    with pytest.raises(StepError, match="'i0' is an image that `chosen` names already"):
        described(model, images, chosen=[0, "i0"])
    with pytest.raises(ValidationError, match="each image may be named once"):
        Params(chosen=["a", "a"])
    with pytest.raises(StepError, match="n_images is 8, but there are only 7 images"):
        described(model, images, n_images=8)
    with pytest.raises(StepError, match="TimeSformer attends twice in a block"):
        described(saved(make("timesformer").model, tmp_path), images)


def test_progress_reaches_the_end(model, images):
    told: list[tuple[int, int]] = []
    describe_attention(model, images, Params(), Job(report=lambda done, total, _: told.append((done, total))))
    assert told[-1] == (7, 7)
