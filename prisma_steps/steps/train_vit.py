"""Train a small vision transformer to classify images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from prisma_steps.schema import Images, Model, label
from prisma_steps.seeding import torch_generator
from prisma_steps.step import Field, Job, Output, StepError, StepParams, step

if TYPE_CHECKING:
    import xarray as xr

    from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
    from prisma_steps.models.training import Classified, Settings, Trainer

_WITH_MLP: dict[str, Any] = {"only_for": {"attention_only": [False]}}


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

    epochs: int = Field(10, gt=0, description="passes over the training images")
    batch_size: int = Field(256, gt=0, description="images in an optimiser step")
    learning_rate: float = Field(1e-3, gt=0, description="highest learning rate, at the end of the warm-up")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decay of weight matrices")
    warmup: int = Field(50, ge=0, description="optimiser steps of linear warm-up; a cosine to 0 follows")
    gradient_clip: float = Field(1.0, gt=0, description="largest norm of the gradient of all parameters")
    compute_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the matrix products in training; weights and evaluation stay float32"
    )
    test_fraction: float = Field(0.1, gt=0, lt=1, description="share of the images held out for the test")
    evaluations_per_epoch: int = Field(1, gt=0, description="entries of the history in an epoch")
    seed: int = Field(0, ge=0, description="seed of the weights, of the split and of the order of images")

    @model_validator(mode="after")
    def _heads_share_out_d_model(self) -> Params:
        if self.d_model % self.n_heads:
            raise ValueError(f"n_heads {self.n_heads} does not divide d_model {self.d_model}")
        return self


@step(inputs={"images": Images}, output=Model)
def train_vit(images: xr.Dataset, params: Params, job: Job) -> Output:
    """Train a small vision transformer to classify images.

    Minimises cross-entropy with AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101). The history along
    ``step`` holds the training metrics since the entry before, and the test metrics on the held-out images;
    ``test_accuracy`` is that of the weights that are kept, which are the last.

    Raises:
        StepError: when the images have no classes or fit no whole number of patches, when the split leaves
            one side empty, or when the loss is no longer finite.
    """
    from prisma_steps.models.loading import model_files
    from prisma_steps.models.toy_vit import ToyViT
    from prisma_steps.models.training import DivergedError, Trainer

    model = ToyViT.initialised(_config(images, params), torch_generator(params.seed, "weights"))
    trainer = Trainer(model, *_split(images, params), _settings(params), job.device)
    state = job.checkpoint.load()
    if state is not None:
        trainer.restore(state)
    try:
        trainer.run(lambda trainer, loss: _after_step(trainer, loss, job))
    except DivergedError as error:
        raise StepError(f"train_vit: {error}. Lower learning_rate, or lengthen warmup.") from error
    return Output(_history(images, model, trainer), model_files(model))


def _config(images: xr.Dataset, params: Params) -> ToyViTConfig:
    from prisma_steps.models.toy_vit import ToyViTConfig

    rows, columns = images.sizes["row"], images.sizes["column"]
    if rows != columns:
        raise StepError(f"train_vit: images are {rows} × {columns} pixels; the model takes square ones")
    if "class_name" not in images.variables:
        raise StepError("train_vit: the images have no classes; put those of each class into a subfolder")
    architecture = ("n_layers", "d_model", "n_heads", "d_mlp", "attention_only", "layer_norm", "patch_size")
    try:
        return ToyViTConfig(
            image_size=rows,
            n_channels=images.sizes["channel"],
            n_classes=images.sizes["class"],
            **params.model_dump(include=set(architecture)),
        )
    except ValueError as error:
        raise StepError(f"train_vit: {error}") from error


def _split(images: xr.Dataset, params: Params) -> tuple[Classified, Classified]:
    """Training and test images, both with their pixels in memory."""
    import torch

    from prisma_steps.data.pixels import labels
    from prisma_steps.models.training import Classified

    count = images.sizes["image"]
    n_test = round(count * params.test_fraction)
    if not 0 < n_test < count:
        raise StepError(
            f"train_vit: test_fraction {params.test_fraction} of {count} images leaves {n_test} for the test "
            f"and {count - n_test} for training; both need at least one"
        )
    order = torch.randperm(count, generator=torch_generator(params.seed, "split into training and test"))
    pixels, classes = torch.from_numpy(images["pixels"].values), labels(images)
    train, test = order[n_test:].sort().values, order[:n_test].sort().values
    return Classified(pixels[train], classes[train]), Classified(pixels[test], classes[test])


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
    )


def _after_step(trainer: Trainer, loss: float, job: Job) -> None:
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
    data["test_accuracy"] = history["test_accuracy"][-1]
    return label(data)


def _sizes(config: ToyViTConfig) -> dict[str, int | bool | str]:
    """The fields that ``ToyViTConfig`` itself declares."""
    return {name: getattr(config, name) for name in type(config).__annotations__ if name != "model_type"}
