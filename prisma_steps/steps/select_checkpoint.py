"""Take a model as it was at one moment of its training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prisma_steps.job import Job
from prisma_steps.schema import Model, label
from prisma_steps.step import Artifact, Field, Output, StepError, StepParams, step

if TYPE_CHECKING:
    import xarray as xr


class Params(StepParams):
    """Which moment."""

    training_step: int = Field(
        ge=0, description="number of optimiser steps done; one of checkpoint_steps of the model's train_vit"
    )


@step(inputs={"model": Model}, output=Model)
def select_checkpoint(model: Artifact, params: Params, job: Job) -> Output:
    """Take a model as it was at one moment of its training.

    With a grid of moments, ``training_step`` is an axis like any other of whatever is made of the models.

    Raises:
        StepError: when the weights of that moment were not kept, naming those that were.
    """
    from prisma_steps.models.loading import WEIGHTS, checkpoint_name, same_file, same_files

    _check_kept(model.data, params.training_step)
    weights = same_file(model.folder / checkpoint_name(params.training_step))
    job.progress(1, 1)
    return Output(_data(model.data, params.training_step), {**same_files(model.folder), WEIGHTS: weights})


def _check_kept(data: xr.Dataset, training_step: int) -> None:
    kept = data["training_step"].values.tolist() if "training_step" in data.dims else []
    if training_step not in kept:
        there = f"those after {', '.join(map(str, kept))} were" if kept else "none were"
        raise StepError(
            f"select_checkpoint: the weights after {training_step} optimiser steps were not kept; {there}. "
            f"Add {training_step} to checkpoint_steps of the train_vit that makes the model."
        )


def _data(data: xr.Dataset, training_step: int) -> xr.Dataset:
    """What is known of the model at that moment: its classes, its sizes, and its test metrics."""
    import xarray as xr

    at = data.sel(training_step=training_step)
    measured = {name: at[f"checkpoint_{name}"].item() for name in ("test_loss", "test_accuracy")}
    return label(xr.Dataset(measured, {"class_name": data["class_name"].variable}, data.attrs))
