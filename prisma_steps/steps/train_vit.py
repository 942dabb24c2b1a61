"""Train a small vision transformer to classify images or clips."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator, model_validator

from prisma_steps.job import Job
from prisma_steps.schema import Images, Model, label
from prisma_steps.seeding import torch_generator
from prisma_steps.step import Field, Output, StepError, StepParams, step

if TYPE_CHECKING:
    import xarray as xr

    from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
    from prisma_steps.models.training import Classified, Settings, Trainer

_WITH_MLP: dict[str, Any] = {"only_for": {"attention_only": [False]}}
_ADDED_LATER: dict[str, Any] = {"as_before": True}
_FALLING: dict[str, Any] = {**_ADDED_LATER, "only_for": {"schedule": ["step"]}}

#: The parameters that are fields of ``ToyViTConfig``.
ARCHITECTURE = (
    *("n_layers", "d_model", "n_heads", "d_mlp", "attention_only", "layer_norm"),
    *("patch_size", "tubelet_size", "pooling", "n_registers"),
)


class Params(StepParams):
    """The architecture of a vision transformer and how it is trained."""

    n_layers: int = Field(2, gt=0, description="number of blocks")
    d_model: int = Field(128, gt=0, description="width of the residual stream")
    n_heads: int = Field(4, gt=0, description="attention heads of a block; must divide d_model")
    d_mlp: int = Field(512, gt=0, description="neurons of an MLP", json_schema_extra=_WITH_MLP)
    attention_only: bool = Field(False, description="leave out the MLPs")
    layer_norm: bool = Field(
        True, description="LayerNorm before attention, MLP and head; false leaves all out"
    )
    patch_size: int = Field(8, gt=0, description="side of a patch in pixels; must divide the image's side")
    tubelet_size: int = Field(
        1,
        gt=0,
        description="frames of a patch of a clip; must divide the number of frames",
        json_schema_extra=_ADDED_LATER,
    )
    pooling: Literal["cls", "mean"] = Field(
        "cls",
        description="what the head reads: a CLS token, or the mean of the patches of a model without one",
        json_schema_extra=_ADDED_LATER,
    )
    n_registers: int = Field(
        0,
        ge=0,
        description="learned tokens between CLS and patches that no head reads",
        json_schema_extra=_ADDED_LATER,
    )

    epochs: int = Field(10, gt=0, description="passes over the training images")
    batch_size: int = Field(256, gt=0, description="images in an optimiser step")
    learning_rate: float = Field(1e-3, gt=0, description="highest learning rate, at the end of the warm-up")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decay of weight matrices")
    warmup: int = Field(50, ge=0, description="optimiser steps of linear warm-up, before the schedule")
    schedule: Literal["cosine", "step", "constant"] = Field(
        "cosine",
        description="learning rate after the warm-up: half a cosine to 0, StepLR, or constant",
        json_schema_extra=_ADDED_LATER,
    )
    step_size: int = Field(
        200, gt=0, description="StepLR: optimiser steps from one fall to the next", json_schema_extra=_FALLING
    )
    gamma: float = Field(0.8, gt=0, le=1, description="StepLR: factor of a fall", json_schema_extra=_FALLING)
    gradient_clip: float = Field(1.0, gt=0, description="largest norm of the gradient of all parameters")
    compute_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the matrix products in training; weights and evaluation stay float32"
    )
    test_fraction: float = Field(0.1, gt=0, lt=1, description="share of the images held out for the test")
    validation_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the images held out for early stopping, beside those for the test; 0 for none",
        json_schema_extra=_ADDED_LATER,
    )
    early_stopping_patience: int | None = Field(
        None,
        gt=0,
        description="entries of the history without a lower validation loss after which training stops and "
        "leaves the weights that had the lowest; null: trains to the end and leaves the last",
        json_schema_extra=_ADDED_LATER,
    )
    evaluations_per_epoch: int = Field(1, gt=0, description="entries of the history in an epoch")
    checkpoint_steps: list[int] = Field(
        [],
        description="numbers of optimiser steps after which the weights are kept too, for select_checkpoint; "
        "0 is before training",
        json_schema_extra=_ADDED_LATER,
    )
    seed: int = Field(0, ge=0, description="seed of the weights, of the splits and of the order of images")

    @model_validator(mode="after")
    def _heads_share_out_d_model(self) -> Params:
        if self.d_model % self.n_heads:
            raise ValueError(f"n_heads {self.n_heads} does not divide d_model {self.d_model}")
        return self

    @model_validator(mode="after")
    def _stops_by_a_validation(self) -> Params:
        if (self.early_stopping_patience is None) != (self.validation_fraction == 0):
            raise ValueError(
                "early_stopping_patience and validation_fraction go together: training stops by the loss on "
                "images that are neither trained nor tested on, such as validation_fraction: 0.05"
            )
        if self.early_stopping_patience is not None and self.checkpoint_steps:
            raise ValueError(
                "training may stop early and never reach checkpoint_steps: leave one of them out"
            )
        return self

    @field_validator("checkpoint_steps")
    @classmethod
    def _in_order(cls, steps: list[int]) -> list[int]:
        if steps != sorted(set(steps)) or any(step < 0 for step in steps):
            raise ValueError("they must be 0 or more, ascending, each named once")
        return steps


@step(inputs={"images": Images}, output=Model)
def train_vit(images: xr.Dataset, params: Params, job: Job) -> Output:
    """Train a small vision transformer to classify images or clips.

    Minimises cross-entropy with AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101). The history along
    ``step`` holds the training metrics since the entry before, and the test metrics on the held-out images;
    ``test_accuracy`` is that of the model that is left, which has the last weights; with
    ``early_stopping_patience`` those of the entry with the lowest validation loss, after ``best_step``
    optimiser steps. Weights on the way to it lie beside it where ``checkpoint_steps`` asks for them, with
    their test metrics along ``training_step``.

    Raises:
        StepError: when the images have no classes or fit no whole number of patches, when a split leaves
            one side empty, when training is too short for a checkpoint, or when the loss is no longer finite.
    """
    from prisma_steps.models.loading import checkpoint_name, model_files, same_file
    from prisma_steps.models.toy_vit import ToyViT
    from prisma_steps.models.training import DivergedError, Trainer

    model = ToyViT.initialised(_config(images, params), torch_generator(params.seed, "weights"))
    train, test, validation = _split(images, params)
    trainer = Trainer(model, train, test, _settings(params), job.device, validation)
    _check_checkpoints(trainer, params)
    state = job.checkpoint.load()
    if state is None:
        _keep_if_asked(trainer, params, job)
    else:
        trainer.restore(state)
    try:
        trainer.run(lambda trainer, loss: _after_step(trainer, loss, params, job))
    except DivergedError as error:
        raise StepError(f"train_vit: {error}. Lower learning_rate, or lengthen warmup.") from error
    kept = {name: same_file(job.scratch / name) for name in map(checkpoint_name, params.checkpoint_steps)}
    return Output(_history(images, model, trainer), {**model_files(model), **kept})


def _config(images: xr.Dataset, params: Params) -> ToyViTConfig:
    from prisma_steps.models.toy_vit import ToyViTConfig

    rows, columns = images.sizes["row"], images.sizes["column"]
    if rows != columns:
        raise StepError(f"train_vit: images are {rows} × {columns} pixels; the model takes square ones")
    if "class_name" not in images.variables:
        raise StepError("train_vit: the images have no classes; put those of each class into a subfolder")
    n_frames = images.sizes.get("frame")
    if n_frames == 1:
        raise StepError("train_vit: the clips have one frame; a model of clips needs two or more")
    try:
        return ToyViTConfig(
            image_size=rows,
            n_frames=n_frames or 1,
            n_channels=images.sizes["channel"],
            n_classes=images.sizes["class"],
            **params.model_dump(include=set(ARCHITECTURE)),
        )
    except ValueError as error:
        raise StepError(f"train_vit: {error}") from error


def _split(images: xr.Dataset, params: Params) -> tuple[Classified, Classified, Classified | None]:
    """Images for training, for the test and for early stopping, with their pixels in memory."""
    import torch

    from prisma_steps.data.pixels import labels
    from prisma_steps.data.splits import split, split_off_validation
    from prisma_steps.models.training import Classified

    count = images.sizes["image"]
    pixels, classes = torch.from_numpy(images["pixels"].values), labels(images)
    train, test = split(count, params.test_fraction, params.seed)
    validation = None
    if params.validation_fraction:
        train, held_out = split_off_validation(train, count, params.validation_fraction, params.seed)
        validation = Classified(pixels[held_out], classes[held_out])
    return Classified(pixels[train], classes[train]), Classified(pixels[test], classes[test]), validation


def _settings(params: Params) -> Settings:
    from prisma_steps.models.training import Settings

    return Settings(
        epochs=params.epochs,
        batch_size=params.batch_size,
        learning_rate=params.learning_rate,
        weight_decay=params.weight_decay,
        warmup=params.warmup,
        gradient_clip=params.gradient_clip,
        compute_dtype=params.compute_dtype,
        evaluations=params.evaluations_per_epoch,
        seed=params.seed,
        schedule=params.schedule,
        step_size=params.step_size,
        gamma=params.gamma,
        patience=params.early_stopping_patience,
    )


def _check_checkpoints(trainer: Trainer, params: Params) -> None:
    too_late = [step for step in params.checkpoint_steps if step > trainer.total]
    if too_late:
        raise StepError(
            f"train_vit: checkpoint_steps names {too_late[0]}, but training ends after {trainer.total} "
            f"optimiser steps ({params.epochs} epochs of {trainer.steps_per_epoch})"
        )


def _keep_if_asked(trainer: Trainer, params: Params, job: Job) -> None:
    """Keep the weights in a file as soon as they are there: however many are kept, memory is that of one."""
    from prisma_steps.models.loading import WEIGHTS, checkpoint_name, model_files

    step = trainer.progress.step
    if step in params.checkpoint_steps:
        model_files(trainer.model)[WEIGHTS](job.scratch / checkpoint_name(step))
        trainer.note_kept()


def _after_step(trainer: Trainer, loss: float, params: Params, job: Job) -> None:
    _keep_if_asked(trainer, params, job)  # before the state is saved, which says that it is kept
    if job.checkpoint.due():
        job.checkpoint.save(trainer.state())
    job.progress(trainer.progress.step, trainer.total, f"loss {loss:.3f}")


def _history(images: xr.Dataset, model: ToyViT, trainer: Trainer) -> xr.Dataset:
    import numpy as np
    import xarray as xr

    history = {name: np.array(values) for name, values in trainer.progress.history.items()}
    step, epoch = history.pop("step"), history.pop("epoch")
    curves = {f"{name}_history" if name == "test_accuracy" else name: history[name] for name in history}
    data = xr.Dataset(
        {name: ("step", values) for name, values in curves.items()},
        coords={"step": step, "epoch": ("step", epoch), "class_name": images["class_name"].variable},
        attrs={**_sizes(model.config), "n_parameters": sum(p.numel() for p in model.parameters())},
    )
    left = -1 - trainer.progress.waited  # the entry of the weights that are left
    data["test_accuracy"] = history["test_accuracy"][left]
    if trainer.best is not None:
        data["best_step"] = step[left]
    return label(data.assign(_of_checkpoints(trainer)))


def _of_checkpoints(trainer: Trainer) -> xr.Dataset:
    """What the weights that were kept on the way reach on the test images; nothing where none were."""
    import xarray as xr

    kept = dict(trainer.progress.kept)
    steps = kept.pop("training_step")
    if not steps:
        return xr.Dataset()
    measured = {f"checkpoint_{name}": ("training_step", values) for name, values in kept.items()}
    return xr.Dataset(measured, {"training_step": steps})


def _sizes(config: ToyViTConfig) -> dict[str, int | bool | str]:
    """The fields that ``ToyViTConfig`` itself declares."""
    return {name: getattr(config, name) for name in type(config).__annotations__ if name != "model_type"}
