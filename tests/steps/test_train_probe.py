"""The step that gives a model a head: what the head reads, what is measured, and what is left."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import xarray as xr
from pydantic import ValidationError
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from prisma_steps import schema
from prisma_steps.data.splits import split
from prisma_steps.job import Job
from prisma_steps.models import probe as kernel
from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.loading import load_model
from prisma_steps.step import Artifact, StepError
from prisma_steps.steps.load_images import Params as ImagesParams
from prisma_steps.steps.load_images import load_images
from prisma_steps.steps.train_probe import Params, train_probe
from tests.artifacts import left, saved, scaled
from tests.models.families import make

CLASSES = ("dark", "middling", "bright")

#: Models without a head, how many tokens lie before their patches, and what is read of them by default.
BARE = {
    "vit bare": (1, "cls_mean_patch"),
    "dinov2_with_registers bare": (4, "cls_mean_patch"),
    "siglip bare": (0, "mean_patch"),
    "videomae bare": (0, "mean_patch"),
}


def images_for(model: HookedViT, count: int = 60) -> xr.Dataset:
    """Noise whose class is how bright it is."""
    generator = np.random.default_rng(0)
    classes = np.arange(count) % len(CLASSES)
    dims = ("image", *schema.IMAGE_DIMS[-len(model.input_shape) :])
    noise = generator.integers(0, 80, (count, *model.input_shape))
    pixels = noise + 80 * classes.reshape(-1, *[1] * len(model.input_shape))
    return xr.Dataset(
        {"pixels": (dims, pixels.astype(np.uint8))},
        {
            "image": [f"noise-{number:02d}" for number in range(count)],
            "label": ("image", classes),
            "class_name": ("class", list(CLASSES)),
        },
    )


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> Artifact:
    return saved(make("vit bare").model, tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def images() -> xr.Dataset:
    return images_for(make("vit bare"))


def by_hand(hidden: torch.Tensor, features: str, n_prefix: int) -> torch.Tensor:
    patches = torch.stack([token[n_prefix:].sum(0) / len(token[n_prefix:]) for token in hidden])
    return {
        "cls": hidden[:, 0],
        "mean_patch": patches,
        "cls_mean_patch": torch.cat([hidden[:, 0], patches], 1),
    }[features]


@pytest.mark.parametrize("name", BARE)
def test_logits_are_the_probe_of_the_features(name, tmp_path):
    bare, (n_prefix, features) = make(name), BARE[name]
    images = images_for(bare)
    output = train_probe(saved(bare.model, tmp_path / "in"), images, Params(batch_size=7), Job())
    schema.check(output.data, schema.Model)
    model = load_model(left(output, tmp_path / "out"))
    assert output.data.attrs["features"] == features and model.class_names == CLASSES
    pixels = scaled(images)
    with torch.no_grad():
        hidden = bare.model(pixels).last_hidden_state
        logits = model(pixels)
    expected = by_hand(hidden, features, n_prefix) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("features", ["cls", "mean_patch", "cls_mean_patch"])
def test_recorded_numbers_are_those_of_the_model_that_is_left(vit, images, features, tmp_path):
    output = train_probe(vit, images, Params(features=features, test_fraction=0.3, seed=5), Job())
    with torch.no_grad():
        logits = load_model(left(output, tmp_path / "out"))(scaled(images))
    classes = torch.from_numpy(images["label"].values)
    for side, where in zip(("train", "test"), split(60, 0.3, 5), strict=True):
        right = (logits[where].argmax(1) == classes[where]).double().mean().item()
        assert output.data[f"{side}_accuracy"].item() == right
        loss = F.cross_entropy(logits[where], classes[where]).item()
        assert output.data[f"{side}_loss"].item() == pytest.approx(loss, abs=1e-5)
        assert output.data[f"n_{side}"].item() == len(where)
    assert output.data["test_accuracy"] > 0.8  # brightness, which the mean patch alone tells; chance is 1/3


def test_the_loss_along_step_is_the_objective_that_ends_at_the_optimum(vit, images, tmp_path):
    output = train_probe(vit, images, Params(l2=0.1), Job())
    model = load_model(left(output, tmp_path / "out"))
    train, _ = split(60, 0.1, 0)
    with torch.no_grad():
        hidden = model.model(scaled(images, train.numpy())).last_hidden_state
    deviation = by_hand(hidden, "cls_mean_patch", 1).double().std(0, correction=0)
    penalty = 0.05 * (model.head.weight.double() * deviation).square().sum().item()
    loss = output.data["loss"].values
    assert loss[0] == pytest.approx(np.log(3)) and output.data["step"].values.tolist() == [*range(len(loss))]
    # The weights are saved in float32.
    assert loss[-1] == pytest.approx(output.data["train_loss"].item() + penalty, abs=1e-5)


def test_the_model_stays_the_same_and_keeps_its_preprocessor(tmp_path):
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 20}
    colour = HookedViT(ViTModel(ViTConfig(**sizes, image_size=8, patch_size=4)).eval())
    images = images_for(colour)
    saved(colour.model, tmp_path / "in")
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
    (tmp_path / "in" / "preprocessor_config.json").write_text(json.dumps(settings))
    (tmp_path / "in" / "checkpoint-3.safetensors").write_text("of another moment")
    output = train_probe(Artifact(xr.Dataset(), tmp_path / "in"), images, Params(), Job())
    made = left(output, tmp_path / "out").folder
    same = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert {file.name for file in made.iterdir()} == {*same, "head.safetensors"}
    assert all((made / name).samefile(tmp_path / "in" / name) for name in same)


def test_where_files_cannot_be_linked_they_are_copied(vit, images, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError("another disk")

    monkeypatch.setattr("os.link", refuse)
    made = left(train_probe(vit, images, Params(), Job()), tmp_path / "out").folder
    for name in ("config.json", "model.safetensors"):
        assert (made / name).read_bytes() == (vit.folder / name).read_bytes()


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("every", [0.0, 1e9], ids=["saved at every batch", "never saved"])
def test_a_run_killed_anywhere_ends_as_an_undisturbed_one(vit, images, tmp_path, every):
    settings = Params(batch_size=16)
    whole = train_probe(vit, images, settings, Job())
    expected = left(whole, tmp_path / "whole").folder
    for number, moment in enumerate(["16/60", "48/60", "60/60", "iteration 3"]):

        def report(done: int, total: int, note: str, moment: str = moment) -> None:
            if moment in f"{done}/{total} {note}" and (moment != "60/60" or "read" in note):
                raise Killed

        scratch = tmp_path / f"scratch{number}"
        with pytest.raises(Killed):
            train_probe(vit, images, settings, Job(scratch=scratch, report=report, checkpoint_every=every))
        read: list[int] = []

        def count(done: int, _total: int, note: str, read: list[int] = read) -> None:
            read += [done] if "read" in note else []

        resumed = train_probe(vit, images, settings, Job(scratch=scratch, report=count, checkpoint_every=1e9))
        after = {"16/60": [32, 48, 60], "48/60": [60]}.get(moment, [])
        assert read == (after if every == 0.0 else [16, 32, 48, 60])
        assert resumed.data.identical(whole.data), moment
        made = left(resumed, tmp_path / f"resumed{number}").folder
        assert all((made / file.name).read_bytes() == file.read_bytes() for file in expected.iterdir())


def test_the_seed_only_splits_and_batch_size_changes_nothing(vit, images, tmp_path):
    outputs = [
        train_probe(vit, images, Params(seed=seed, batch_size=size), Job())
        for seed, size in ((0, 256), (0, 256), (0, 13), (1, 256))
    ]
    heads = [left(out, tmp_path / f"{i}").folder / "head.safetensors" for i, out in enumerate(outputs)]
    assert heads[0].read_bytes() == heads[1].read_bytes() != heads[3].read_bytes()
    # Another batch size is another order of summation inside the model.
    np.testing.assert_allclose(outputs[2].data["loss"][-1], outputs[0].data["loss"][-1], rtol=0, atol=1e-6)
    assert Params.model_fields["batch_size"].json_schema_extra == {"not_in_key": True}


def test_what_cannot_be_probed_is_explained(vit, images, tmp_path):
    def run(model: Artifact = vit, images: xr.Dataset = images, **params) -> None:
        train_probe(model, images, Params(**params), Job())

    siglip = make("siglip bare")
    with pytest.raises(StepError, match="features is 'cls', but the model has no CLS token.*'mean_patch'"):
        run(saved(siglip.model, tmp_path / "siglip"), images_for(siglip), features="cls")
    with pytest.raises(StepError, match="the model has a head already"):
        run(saved(make("vit").model, tmp_path / "headed"))
    with pytest.raises(StepError, match="the images have no classes"):
        run(images=images.drop_vars(["label", "class_name"]))
    with pytest.raises(StepError, match=r"1 of 3 classes have no training image \(bright\)"):
        run(images=images.isel(image=images["label"].values < 2))
    with pytest.raises(StepError, match="train_probe: these are still images of 1 channels"):
        run(images=images.isel(channel=[0]))
    with pytest.raises(StepError, match="test_fraction 0.001 of 60 images leaves 0"):
        run(test_fraction=0.001)
    with pytest.raises(ValidationError, match="greater than 0"):
        Params(l2=0)


def test_a_probed_model_is_refused(vit, images, tmp_path):
    made = left(train_probe(vit, images, Params(), Job()), tmp_path / "out")
    with pytest.raises(StepError, match="has a head already"):
        train_probe(made, images, Params(), Job())


def test_a_feature_that_is_not_finite_names_its_image(images, vit, monkeypatch):
    prepare = HookedViT.preprocess

    def broken(model: HookedViT, raw: torch.Tensor) -> torch.Tensor:
        pixels = prepare(model, raw)
        pixels[(raw == the_one).flatten(1).all(1)] = torch.nan
        return pixels

    the_one = torch.from_numpy(images["pixels"].sel(image="noise-23").values)
    monkeypatch.setattr(HookedViT, "preprocess", broken)
    with pytest.raises(StepError, match="image noise-23: a feature that the model makes of it is not finite"):
        train_probe(vit, images, Params(batch_size=10), Job())


def test_an_optimum_out_of_reach_says_what_to_do(vit, images, monkeypatch):
    monkeypatch.setattr(kernel, "MAX_ITERATIONS", 2)
    with pytest.raises(StepError, match=r"train_probe: after 2 iterations .* Raise l2\."):
        train_probe(vit, images, Params(), Job())


def test_a_trained_model_tells_photographs_apart(focus_vit, cifar10):
    folder = cifar10("train", 20)
    for name in ("automobile", "bird", "cat", "deer", "dog", "truck"):
        shutil.rmtree(folder / name)
    photographs = load_images(ImagesParams(dataset="image_folder", path=str(folder), size=84), Job()).load()
    model = Artifact(xr.Dataset(), focus_vit)
    output = train_probe(model, photographs, Params(test_fraction=0.25), Job())
    assert output.data["n_test"] == 20
    assert output.data["test_accuracy"] > 0.5  # chance is 0.25
