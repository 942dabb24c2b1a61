from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from pydantic import ValidationError

from prisma_steps import schema
from prisma_steps.axes import Axis
from prisma_steps.figures.training_curves import Params as CurvesParams
from prisma_steps.figures.training_curves import training_curves
from prisma_steps.fingerprint import parameters_in_key
from prisma_steps.hypercube import combine
from prisma_steps.job import Job
from prisma_steps.models.loading import load_model
from prisma_steps.step import Artifact, Output, StepError
from prisma_steps.steps.load_images import Params as ImagesParams
from prisma_steps.steps.load_images import load_images
from prisma_steps.steps.train_vit import Params, _split, train_vit

#: Of 120 images: 12 for the test, 24 for the validation.
STOPPING = {"early_stopping_patience": 2, "validation_fraction": 0.2}
SMALL = {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_mlp": 32, "patch_size": 4, "warmup": 3}


@pytest.fixture(scope="module")
def digits() -> xr.Dataset:
    return load_images(ImagesParams(dataset="digits", n_images=120), Job()).load()


def params(**changes) -> Params:
    return Params(**{**SMALL, "epochs": 2, "batch_size": 24, **changes})


def bytes_of(output: Output, folder: Path) -> dict[str, bytes]:
    folder.mkdir(exist_ok=True)
    for name, write in output.files.items():
        write(folder / name)
    return {name: (folder / name).read_bytes() for name in output.files}


class Killed(Exception):
    """Stands for the end of the process."""


def killed_at(step: int) -> Callable[[int, int, str], None]:
    def report(done: int, _total: int, _note: str) -> None:
        if done == step:
            raise Killed

    return report


def test_a_model_artifact_is_left(digits, tmp_path):
    output = train_vit(digits, params(evaluations_per_epoch=2), Job())
    schema.check(output.data, schema.Model)
    assert set(output.files) == set(schema.Model.files)
    assert output.data["step"].values.tolist() == [3, 5, 8, 10]
    assert output.data["epoch"].values.tolist() == [0.6, 1.0, 1.6, 2.0]
    assert output.data["test_accuracy"] == output.data["test_accuracy_history"][-1]
    assert output.data["class_name"].values.tolist() == list("0123456789")
    assert not any(output.data[name].isnull().any() for name in output.data)
    bytes_of(output, tmp_path)
    model = load_model(Artifact(output.data, tmp_path))
    assert output.data.attrs["n_parameters"] == sum(p.numel() for p in model.model.parameters())
    assert model.config.n_classes == 10 and model.config.image_size == 8


def test_recorded_accuracy_is_that_of_the_saved_model_on_the_held_out_images(digits, tmp_path):
    output = train_vit(digits, params(epochs=4), Job())
    bytes_of(output, tmp_path)
    _, test, _ = _split(digits, params())
    predicted = load_model(Artifact(output.data, tmp_path))(test.pixels.float() / 255).argmax(-1)
    assert output.data["test_accuracy"].item() == (predicted == test.labels).double().mean().item()


def test_digits_are_learnt_above_chance():
    digits = load_images(ImagesParams(dataset="digits"), Job()).load()
    output = train_vit(digits, params(patch_size=2, epochs=8, batch_size=64, learning_rate=3e-3), Job())
    assert output.data["test_accuracy"] > 0.5  # chance is 0.1
    assert output.data["train_loss"][-1] < output.data["train_loss"][0]


def test_the_same_run_leaves_the_same_bytes_and_another_seed_others(digits, tmp_path):
    first, again, other = (train_vit(digits, params(seed=seed), Job()) for seed in (0, 0, 1))
    assert first.data.identical(again.data)
    assert bytes_of(first, tmp_path / "a") == bytes_of(again, tmp_path / "b")
    assert bytes_of(first, tmp_path / "a") != bytes_of(other, tmp_path / "c")


@pytest.mark.parametrize("every", [0.0, 1e9], ids=["saved at every step", "never saved"])
@pytest.mark.parametrize("stopping", [False, True], ids=["to the end", "stopping early"])
def test_a_run_killed_at_any_step_ends_as_an_undisturbed_one(digits, tmp_path, every, stopping):
    # Steps of 1 do harm after a few, so that training stops before its 20 steps are done.
    early = {**STOPPING, "schedule": "constant", "learning_rate": 0.3, "epochs": 5}
    settings = params(evaluations_per_epoch=2, compute_dtype="bfloat16", **(early if stopping else {}))
    whole = train_vit(digits, settings, Job())
    last = int(whole.data["step"][-1])
    assert last < 20 if stopping else last == 10
    expected = bytes_of(whole, tmp_path / "whole")
    for step in range(1, last + 1):
        scratch = tmp_path / f"scratch{step}"
        with pytest.raises(Killed):
            train_vit(digits, settings, Job(scratch=scratch, report=killed_at(step), checkpoint_every=every))
        assert (scratch / "checkpoint.pt").exists() == (every == 0.0)
        resumed = train_vit(digits, settings, Job(scratch=scratch, checkpoint_every=every))
        assert resumed.data.identical(whole.data), f"killed at step {step}"
        assert bytes_of(resumed, tmp_path / f"resumed{step}") == expected, f"killed at step {step}"


def test_a_run_killed_again_and_again_ends_as_an_undisturbed_one(digits, tmp_path):
    whole = train_vit(digits, params(), Job())
    for step in (2, 3, 7, 10):
        with pytest.raises(Killed):
            train_vit(digits, params(), Job(scratch=tmp_path, report=killed_at(step), checkpoint_every=0.0))
    seen: list[int] = []
    job = Job(scratch=tmp_path, report=lambda done, *_: seen.append(done))
    assert bytes_of(train_vit(digits, params(), job), tmp_path / "a") == bytes_of(whole, tmp_path / "b")
    assert seen == [], "nothing was left to do"


def test_progress_tells_the_loss(digits):
    told: list[tuple[int, int, str]] = []
    train_vit(digits, params(epochs=1), Job(report=lambda *report: told.append(report)))
    assert [(done, total) for done, total, _ in told] == [(step, 5) for step in range(1, 6)]
    assert all(note.startswith("loss ") for *_, note in told)


def test_split_is_seeded_disjoint_and_of_the_size_asked_for(digits):
    splits = [_split(digits, params(test_fraction=0.25, seed=seed))[:2] for seed in (0, 0, 1)]
    rows = [[{image.numpy().tobytes() for image in side.pixels} for side in split] for split in splits]
    assert [len(side) for side in splits[0]] == [90, 30]
    assert rows[0] == rows[1] != rows[2]
    everything = {image.tobytes() for image in digits["pixels"].values}
    assert not rows[0][0] & rows[0][1] and rows[0][0] | rows[0][1] == everything


def test_validation_is_seeded_and_apart_from_training_and_test(digits):
    sides = [_split(digits, params(**STOPPING, seed=seed)) for seed in (0, 0, 1)]
    rows = [[{image.numpy().tobytes() for image in side.pixels} for side in split] for split in sides]
    assert [len(side) for side in sides[0]] == [84, 12, 24]
    assert rows[0] == rows[1] and rows[0][2] != rows[2][2]
    assert sum(map(len, rows[0])) == len(set.union(*rows[0])) == 120
    plain = _split(digits, params())[1]
    assert rows[0][1] == {image.numpy().tobytes() for image in plain.pixels}, "the test images stay"


def test_labels_stay_with_their_images(digits):
    of_image = {
        image.tobytes(): label
        for image, label in zip(digits["pixels"].values, digits["label"].values, strict=True)
    }
    for side in filter(None, _split(digits, params(**STOPPING))):
        assert [of_image[image.numpy().tobytes()] for image in side.pixels] == side.labels.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 3}, "train_vit: patch_size 3 does not divide the image size 8"),
        ({"test_fraction": 0.001}, "test_fraction 0.001 of 120 images leaves 0 for the test and 120"),
        ({"test_fraction": 0.999}, "leaves 120 for the test and 0 for training"),
        (
            {"learning_rate": 1e30, "warmup": 0},
            "at optimiser step [23]. Lower learning_rate, or lengthen warmup",
        ),
    ],
)
def test_what_cannot_be_trained_is_explained(digits, changes, message):
    with pytest.raises(StepError, match=message):
        train_vit(digits, params(**changes), Job())


def test_images_without_classes_or_not_square_are_explained(digits):
    with pytest.raises(StepError, match="images have no classes"):
        train_vit(digits.drop_vars(["label", "class_name"]), params(), Job())
    with pytest.raises(StepError, match="images are 8 × 7 pixels"):
        train_vit(digits.isel(column=slice(7)), params(), Job())


def test_heads_that_do_not_divide_are_refused_before_anything_runs():
    with pytest.raises(ValidationError, match="n_heads 3 does not divide d_model 16"):
        params(n_heads=3)


def test_architecture_is_the_one_asked_for(digits, tmp_path):
    asked = {"n_layers": 2, "attention_only": True, "layer_norm": False}
    output = train_vit(digits, params(**asked, epochs=1), Job())
    bytes_of(output, tmp_path)
    config = load_model(Artifact(output.data, tmp_path)).config.to_dict()
    assert {name: config[name] for name in asked} == asked
    assert np.isfinite(output.data["test_loss"]).all()


# --- clips, registers, pooling


def moving_sprites(count: int, **changes) -> xr.Dataset:
    asked = {"dataset": "moving_sprites", "n_images": count, "n_frames": 2, "speeds": [4], **changes}
    return load_images(ImagesParams(**asked), Job()).load()


@pytest.mark.parametrize(("motion", "low", "high"), [("moving", 0.8, 1.0), ("static", 0.0, 0.35)])
def test_motion_is_learnt_and_nothing_else_tells_the_direction(motion, low, high):
    clips = moving_sprites(2000, motion=motion)
    small = {"n_layers": 2, "d_model": 64, "n_heads": 4, "d_mlp": 128, "patch_size": 16, "tubelet_size": 2}
    asked = {
        **small,
        "batch_size": 64,
        "learning_rate": 2e-3,
        "warmup": 30,
        "epochs": 3,
        "test_fraction": 0.2,
    }
    output = train_vit(clips, Params(**asked), Job())
    # Chance is 0.25; of 400 test clips, 0.35 is more than four standard errors above it.
    assert low < output.data["test_accuracy"] <= high


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_model_of_clips_has_the_tokens_asked_for(pooling, tmp_path):
    clips = moving_sprites(20, n_frames=4)
    asked = params(
        patch_size=32, tubelet_size=2, pooling=pooling, n_registers=3, epochs=1, test_fraction=0.25
    )
    output = train_vit(clips, asked, Job())
    bytes_of(output, tmp_path)
    model = load_model(Artifact(output.data, tmp_path))
    assert model.is_video and model.input_shape == (4, 1, 64, 64)
    tokens = model.token_coords()
    cls = ["cls"] if pooling == "cls" else []
    assert tokens["token_kind"].tolist() == [*cls, *["register"] * 3, *["patch"] * 8]
    assert tokens["patch_frame"][-8:].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    _, test, _ = _split(clips, asked)
    predicted = model(test.pixels.float() / 255).argmax(-1)
    assert output.data["test_accuracy"].item() == (predicted == test.labels).double().mean().item()


def test_clips_that_no_model_takes_are_explained(digits):
    clips = moving_sprites(20, n_frames=4)
    with pytest.raises(StepError, match="tubelet_size 3 does not divide the 4 frames"):
        train_vit(clips, params(patch_size=32, tubelet_size=3), Job())
    with pytest.raises(StepError, match="tubelet_size 2 does not divide the 1 frames"):
        train_vit(digits, params(tubelet_size=2), Job())
    with pytest.raises(StepError, match="the clips have one frame"):
        train_vit(clips.isel(frame=[0]), params(patch_size=32), Job())
    with pytest.raises(StepError, match="images are 64 × 32 pixels"):
        train_vit(clips.isel(column=slice(32)), params(patch_size=32), Job())


def test_keys_made_before_a_parameter_existed_stay():
    first = {
        *("n_layers", "d_model", "n_heads", "d_mlp", "attention_only", "layer_norm", "patch_size", "epochs"),
        *("batch_size", "learning_rate", "weight_decay", "warmup", "gradient_clip", "compute_dtype"),
        *("test_fraction", "evaluations_per_epoch", "seed"),
    }
    assert parameters_in_key(Params()).keys() == first
    changed = Params(schedule="step", validation_fraction=0.1, early_stopping_patience=3)
    assert parameters_in_key(changed).keys() - first == {
        *("schedule", "validation_fraction", "early_stopping_patience")
    }
    assert "gamma" in parameters_in_key(Params(schedule="step", gamma=0.5))
    assert "gamma" not in parameters_in_key(Params(gamma=0.5)), "a cosine has no falls"


# --- weights kept along training


def test_weights_that_are_kept_are_those_of_a_run_that_ends_there(digits, tmp_path):
    # With no decay to the end, and warm-up past it, a shorter run takes the same steps as the longer one.
    settings = {"warmup": 1000, "batch_size": 108, "checkpoint_steps": [0, 2, 4]}
    output = train_vit(digits, params(**settings, epochs=4), Job())
    schema.check(output.data, schema.Model)
    assert output.data["training_step"].values.tolist() == [0, 2, 4]
    files = bytes_of(output, tmp_path / "long")
    kept = [files[f"checkpoint-{step}.safetensors"] for step in (0, 2, 4)]
    assert len(set(kept)) == 3 and kept[2] == files["model.safetensors"]
    short = train_vit(digits, params(**{**settings, "checkpoint_steps": []}, epochs=2), Job())
    assert kept[1] == bytes_of(short, tmp_path / "short")["model.safetensors"]
    for name in ("loss", "accuracy"):
        measured = output.data[f"checkpoint_test_{name}"].values
        history = output.data["test_loss" if name == "loss" else "test_accuracy_history"].values
        assert measured[1:].tolist() == history[[1, 3]].tolist()


def test_keeping_weights_changes_nothing_else(digits, tmp_path):
    output, kept = (train_vit(digits, params(checkpoint_steps=steps), Job()) for steps in ([], [3]))
    assert kept.data.drop_dims("training_step").identical(output.data)
    plain = bytes_of(output, tmp_path / "plain")
    assert plain.keys() == {"model.safetensors", "config.json"}
    assert plain.items() <= bytes_of(kept, tmp_path / "kept").items()


@pytest.mark.parametrize("every", [0.0, 1e9], ids=["saved at every step", "never saved"])
def test_weights_are_kept_whenever_a_run_is_killed(digits, tmp_path, every):
    settings = params(checkpoint_steps=[0, 3, 4, 10])
    whole = train_vit(digits, settings, Job())
    expected = bytes_of(whole, tmp_path / "whole")
    for step in (1, 3, 4, 10):
        scratch = tmp_path / f"scratch{step}"
        with pytest.raises(Killed):
            train_vit(digits, settings, Job(scratch=scratch, report=killed_at(step), checkpoint_every=every))
        resumed = train_vit(digits, settings, Job(scratch=scratch, checkpoint_every=every))
        assert resumed.data.identical(whole.data), f"killed at step {step}"
        assert bytes_of(resumed, tmp_path / f"resumed{step}") == expected, f"killed at step {step}"


def test_moments_that_do_not_come_are_explained(digits):
    with pytest.raises(
        StepError, match=r"names 11, but training ends after 10 optimiser steps \(2 epochs of 5"
    ):
        train_vit(digits, params(checkpoint_steps=[3, 11]), Job())
    for steps in ([-1], [3, 3], [4, 3]):
        with pytest.raises(ValidationError, match="0 or more, ascending, each named once"):
            params(checkpoint_steps=steps)


# --- early stopping


def test_the_weights_left_are_those_of_the_lowest_validation_loss(digits, tmp_path):
    early = {**STOPPING, "schedule": "constant", "learning_rate": 0.3, "epochs": 40}
    settings = params(**early)
    output = train_vit(digits, settings, Job())
    schema.check(output.data, schema.Model)
    losses = output.data["validation_loss"]
    best = int(losses.values.argmin())
    assert losses.sizes["step"] == best + 1 + 2 < 40, "two entries without a lower loss, and no more"
    assert output.data["best_step"] == output.data["step"][best]
    assert output.data["test_accuracy"] == output.data["test_accuracy_history"][best]
    bytes_of(output, tmp_path)
    _, _, held_out = _split(digits, settings)
    assert held_out is not None
    left = load_model(Artifact(output.data, tmp_path))
    loss = torch.nn.functional.cross_entropy(left(held_out.pixels.float() / 255), held_out.labels)
    # float32 means of 24 terms, summed in another order
    assert loss.item() == pytest.approx(losses[best].item(), rel=1e-5)


def test_runs_that_stopped_at_different_steps_are_one_dataset(digits):
    early = {**STOPPING, "schedule": "constant", "learning_rate": 0.3, "epochs": 40}
    runs = [train_vit(digits, params(**early, seed=seed), Job()).data for seed in (0, 1)]
    lengths = [run.sizes["step"] for run in runs]
    assert lengths[0] != lengths[1]
    joined = combine(runs, [Axis("seed", {"seed": (0, 1)})])
    assert joined["test_loss"].count("step").values.tolist() == lengths
    curves = training_curves(joined, CurvesParams(), Job()).data
    assert curves["test_loss"].count() == min(lengths), "means over seeds end where the first of them does"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"early_stopping_patience": 2}, "go together"),
        ({"validation_fraction": 0.1}, "go together"),
        ({**STOPPING, "checkpoint_steps": [3]}, "leave one of them out"),
    ],
)
def test_early_stopping_that_cannot_be_is_refused_before_anything_runs(changes, message):
    with pytest.raises(ValidationError, match=message):
        params(**changes)


def test_a_validation_that_leaves_nothing_is_explained(digits):
    with pytest.raises(StepError, match="takes 108 of the 108 that the test leaves"):
        train_vit(digits, params(**{**STOPPING, "validation_fraction": 0.9}), Job())
