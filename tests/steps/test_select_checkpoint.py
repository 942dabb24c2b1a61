"""A model as it was at one moment of its training."""

from __future__ import annotations

import pytest
import torch
import xarray as xr
from torch.nn import functional as F

from prisma_steps import schema
from prisma_steps.job import Job
from prisma_steps.models.loading import load_model
from prisma_steps.step import Artifact, StepError
from prisma_steps.steps.load_images import Params as ImagesParams
from prisma_steps.steps.load_images import load_images
from prisma_steps.steps.select_checkpoint import Params, select_checkpoint
from prisma_steps.steps.train_vit import Params as VitParams
from prisma_steps.steps.train_vit import _split, train_vit
from tests.artifacts import left

SETTINGS = VitParams(
    n_layers=1,
    d_model=16,
    n_heads=2,
    d_mlp=32,
    patch_size=4,
    epochs=2,
    batch_size=24,
    warmup=3,
    checkpoint_steps=[0, 4, 10],
)


@pytest.fixture(scope="module")
def digits() -> xr.Dataset:
    return load_images(ImagesParams(dataset="digits", n_images=120), Job()).load()


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory) -> Artifact:
    return left(train_vit(digits, SETTINGS, Job()), tmp_path_factory.mktemp("trained") / "model")


@pytest.mark.parametrize("training_step", [0, 4, 10])
def test_numbers_are_those_of_the_model_at_that_moment(trained, digits, training_step, tmp_path):
    output = select_checkpoint(trained, Params(training_step=training_step), Job())
    schema.check(output.data, schema.Model)
    assert set(output.files) == {"model.safetensors", "config.json"}
    made = left(output, tmp_path / "out")
    assert (made.folder / "model.safetensors").samefile(
        trained.folder / f"checkpoint-{training_step}.safetensors"
    )
    model = load_model(made)
    assert model.class_names == tuple("0123456789")
    assert output.data.attrs == trained.data.attrs
    test = _split(digits, SETTINGS)[1]
    logits = model(test.pixels.float() / 255)
    accuracy = (logits.argmax(-1) == test.labels).double().mean().item()
    assert output.data["test_accuracy"].item() == accuracy
    assert output.data["test_loss"].item() == pytest.approx(
        F.cross_entropy(logits, test.labels).item(), abs=1e-6
    )


def test_the_end_of_training_is_the_model_itself(trained, tmp_path):
    made = left(select_checkpoint(trained, Params(training_step=10), Job()), tmp_path / "out")
    ours, theirs = (load_model(artifact).model.state_dict() for artifact in (made, trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert made.data["test_accuracy"] == trained.data["test_accuracy"]


def test_a_moment_that_was_not_kept_is_explained(trained):
    with pytest.raises(
        StepError, match="after 5 optimiser steps were not kept; those after 0, 4, 10 were. Add 5"
    ):
        select_checkpoint(trained, Params(training_step=5), Job())
    bare = Artifact(trained.data.drop_dims("training_step"), trained.folder)
    with pytest.raises(StepError, match="were not kept; none were"):
        select_checkpoint(bare, Params(training_step=5), Job())
