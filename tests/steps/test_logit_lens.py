from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from prisma_steps import schema
from prisma_steps.job import Job
from prisma_steps.models.heads import ZeroShotHead, head_files
from prisma_steps.models.loading import load_model, model_files
from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.step import Artifact, Output, StepError
from prisma_steps.steps import logit_lens as module
from prisma_steps.steps.logit_lens import Params, logit_lens
from tests.artifacts import left, saved, scaled
from tests.models.families import make

NAMES = list("abcde")
NAMED = xr.Dataset(coords={"class_name": ("class", NAMES)})

#: Float32 logits of size 1; another batch size is another order of summation.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def toy(folder, **changes) -> Artifact:
    config = ToyViTConfig(
        **{
            **dict(n_layers=2, d_model=12, n_heads=3, d_mlp=20, patch_size=4, image_size=8),
            **dict(n_channels=1, n_classes=5),
            **changes,
        }
    )
    return saved(ToyViT.initialised(config, torch.Generator().manual_seed(0)), folder, NAMED)


def pictures(*shape: int, dims=("channel", "row", "column")) -> xr.Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (7, *shape), "uint8")
    return xr.Dataset(
        {"pixels": (("image", *dims), pixels)},
        coords={
            "image": [f"i{n}" for n in range(7)],
            "label": ("image", np.arange(7) % 5),
            "class_name": ("class", NAMES),
        },
    )


@pytest.fixture(scope="module")
def images() -> xr.Dataset:
    return pictures(1, 8, 8)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Artifact:
    return toy(tmp_path_factory.mktemp("model"))


def lens(model: Artifact, images: xr.Dataset, **params) -> xr.Dataset:
    return logit_lens(model, images, Params(**params), Job()).load()


def test_artifact_fits_the_schema(model, images):
    found = lens(model, images, top=3)
    schema.check(found, schema.Lens)
    assert dict(found.sizes) == {"image": 7, "layer": 3, "token": 5, "place": 3, "class": 5}
    assert found["ce"].dims == ("image", "layer", "token") and found["exit_ce"].dims == ("image", "layer")
    assert found["token_kind"].values.tolist() == ["cls"] + ["patch"] * 4
    assert found["image"].values.tolist() == images["image"].values.tolist()
    assert found["class_name"].values.tolist() == NAMES
    assert all({"long_name", "units"} <= set(found[name].attrs) for name in found.variables)


def test_a_cell_is_the_head_on_the_stream_that_its_labels_tell(model, images):
    found, vit = lens(model, images, top=2), load_model(model)
    _, cache = vit.run_with_cache(scaled(images), ["resid_pre", "resid_post"])
    streams = [cache["resid_pre", 0], cache["resid_pre", 1], cache["resid_post", 1]]
    for layer, stream in enumerate(streams):
        logits = vit.model.head(vit.model.ln_final(stream)).numpy()
        cells = found.sel(layer=layer)
        np.testing.assert_allclose(cells["top_logit"], np.sort(logits)[..., ::-1][..., :2], **CLOSE)
        np.testing.assert_array_equal(cells["top_class"].isel(place=0), logits.argmax(-1))
        correct = np.take_along_axis(logits, images["label"].values[:, None, None], -1)
        np.testing.assert_allclose(cells["correct_logit"], correct[..., 0], **CLOSE)
        np.testing.assert_array_equal(cells["correct_rank"], (logits > correct).sum(-1))
        probability = np.exp(correct[..., 0]) / np.exp(logits).sum(-1)
        np.testing.assert_allclose(cells["correct_probability"], probability, **CLOSE)
        np.testing.assert_allclose(cells["ce"], -np.log(probability), **CLOSE)
        for name in ("logit", "rank", "probability"):  # this head reads CLS alone
            np.testing.assert_allclose(cells[f"exit_{name}"], cells[f"correct_{name}"].sel(token=0), **CLOSE)
        np.testing.assert_allclose(cells["exit_ce"], cells["ce"].sel(token=0), **CLOSE)
        np.testing.assert_array_equal(cells["exit_class"], cells["top_class"].sel(token=0, place=0))


def test_the_end_is_the_models_answer(images, tmp_path):
    model = toy(tmp_path, pooling="mean", n_registers=2)
    found = lens(model, images)
    logits = load_model(model)(scaled(images))
    end = found.sel(layer=2)
    np.testing.assert_array_equal(end["exit_class"], logits.argmax(-1))
    correct = logits[torch.arange(7), torch.from_numpy(images["label"].values)]
    np.testing.assert_allclose(end["exit_logit"], correct, **CLOSE)
    patches = end["correct_logit"][:, end["token_kind"].values == "patch"]
    np.testing.assert_allclose(patches.mean("token"), correct, **CLOSE)


def test_blocks_and_parts_are_the_whole(model, images, monkeypatch):
    whole = lens(model, images)
    monkeypatch.setattr(module, "BLOCK_BYTES", 1)  # one image a block
    assert logit_lens(model, images, Params(), Job()).size == 1
    xr.testing.assert_allclose(lens(model, images), whole, rtol=1e-5, atol=1e-5)
    parts = [lens(model, images, parts=2, part=part) for part in range(2)]
    xr.testing.assert_allclose(xr.concat(parts, "image", data_vars="minimal"), whole, rtol=1e-5, atol=1e-5)


def test_tokens_of_a_clip_keep_their_frame(tmp_path):
    clips = pictures(4, 1, 8, 8, dims=("frame", "channel", "row", "column"))
    found = lens(toy(tmp_path, n_frames=4, tubelet_size=2), clips)
    assert found["patch_frame"].values.tolist() == [-1, *[0] * 4, *[1] * 4]
    assert found["top_class"].sizes["token"] == 9


def test_a_zero_shot_head_is_looked_through(tmp_path):
    vit, head = make("clip").model, ZeroShotHead(torch.randn(5, 7), 10.0)
    model = left(Output(NAMED, {**model_files(vit), **head_files(head)}), tmp_path)
    images = pictures(2, 8, 8)
    found = lens(model, images, top=1)
    logits = load_model(model)(scaled(images))
    np.testing.assert_allclose(found["top_logit"].isel(layer=2, token=0, place=0), logits.amax(-1), **CLOSE)
    np.testing.assert_array_equal(found["exit_class"].isel(layer=2), logits.argmax(-1))


def test_without_the_correct_class(model, images):
    strange = images.drop_vars("class_name").assign_coords(class_name=("class", ["cat", "dog"]))
    with pytest.raises(StepError, match="classes .cat, dog., the model tells 5 apart .a, b, c, d, e"):
        lens(model, strange)
    with pytest.raises(StepError, match="the images have no classes"):
        lens(model, images.drop_vars("label"))
    found = lens(model, strange, correct_class=False)
    assert set(found.data_vars) == {"top_class", "top_logit", "exit_class"} and "label" not in found
    np.testing.assert_array_equal(found["top_class"], lens(model, images)["top_class"])
    assert found["class_name"].values.tolist() == NAMES


def test_labels_beyond_the_models_classes(model, images):
    beyond = images.drop_vars("class_name").assign_coords(label=images["label"] + 1)
    with pytest.raises(StepError, match="of 6 classes .* the model tells 5 apart"):
        lens(model, beyond)


def test_bad_input(model, images, tmp_path):
    with pytest.raises(StepError, match="top is 9, but the model has only 5 classes"):
        lens(model, images, top=9)
    with pytest.raises(StepError, match="n_images is 8, but there are only 7 images"):
        lens(model, images, n_images=8)
    bare = saved(make("vit bare").model, tmp_path)
    with pytest.raises(StepError, match="logit_lens: the model has no classes, and logits need a head"):
        lens(bare, pictures(2, 8, 8))
    with pytest.raises(StepError, match="these are still images of 2 channels"):
        lens(model, pictures(2, 8, 8))


def test_progress_reaches_the_end(model, images):
    told: list[tuple[int, int]] = []
    job = Job(report=lambda done, total, _: told.append((done, total)))
    logit_lens(model, images, Params(n_images=3), job).load()
    assert told == [(3, 3)]
