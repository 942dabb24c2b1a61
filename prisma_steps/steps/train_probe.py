"""Give a model without a head one: a linear probe that classifies images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from prisma_steps.job import Job
from prisma_steps.schema import Images, Model, label
from prisma_steps.step import Artifact, Field, Output, StepError, StepParams, step

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from prisma_steps.models.heads import Features, LinearProbe
    from prisma_steps.models.hooked import HookedViT
    from prisma_steps.models.probe import Fit


class Params(StepParams):
    """What the probe reads, and how it is fitted."""

    features: Literal["auto", "cls", "mean_patch", "cls_mean_patch"] = Field(
        "auto",
        description="what of the last hidden state is read: CLS, the mean of the patches, or both side by "
        "side; auto takes both, or the patches of a model without CLS",
    )
    l2: float = Field(
        0.01,
        gt=0,
        description="l2/2 · ‖weight‖², of standardised features, is added to the mean cross-entropy",
    )
    test_fraction: float = Field(0.1, gt=0, lt=1, description="share of the images held out for the test")
    seed: int = Field(0, ge=0, description="seed of the split into training and test")
    batch_size: int = Field(
        256,
        gt=0,
        description="images that go through the model at once",
        json_schema_extra={"not_in_key": True},
    )


@step(inputs={"model": Model, "images": Images}, output=Model)
def train_probe(model: Artifact, images: xr.Dataset, params: Params, job: Job) -> Output:
    """Give a model without a head one: a linear probe that classifies images.

    Multinomial logistic regression on features that are read once: mean cross-entropy + l2/2 · ‖weight‖²,
    with features standardised by the training images, minimised in float64 by L-BFGS. The optimum is one, so
    the seed only splits the images. ``loss`` is the objective along ``step``; the accuracies and losses are
    those of the probe as it is saved, in float32.

    Returns:
        The same model with the probe as its head.

    Raises:
        StepError: when the model has a head, or lacks the tokens asked for; when images do not fit the model
            or have no classes; when a class has no training image; when a feature is not finite; when the
            optimum is not found.
    """
    from prisma_steps.data.pixels import labels
    from prisma_steps.data.splits import split
    from prisma_steps.models.heads import head_files
    from prisma_steps.models.loading import load_model, same_files

    vit = load_model(model, job.device)
    reads, n_prefix = _what_is_read(vit, params)
    train, test = split(images.sizes["image"], params.test_fraction, params.seed)
    classes = labels(images)
    _check_classes(images, classes[train])
    features = _read(vit, images, reads, n_prefix, params, job)
    found = _fit(features[train], classes[train], images.sizes["class"], params, job)
    probe = _probe(found, reads, n_prefix)
    data = _measured(found, images)
    for side, where in (("train", train), ("test", test)):
        data = data.assign(_quality(probe, side, features[where], classes[where]))
    return Output(label(data.assign_attrs(features=reads)), {**same_files(model.folder), **head_files(probe)})


def _what_is_read(vit: HookedViT, params: Params) -> tuple[Features, int]:
    """What of the last hidden state, and how many tokens lie before its patches."""
    if vit.unembedding is not None:
        raise StepError(
            "train_probe: the model has a head already. Give it a model without one: the output of "
            "train_probe is a whole model, its `model` the one before it."
        )
    kinds = vit.token_coords()["token_kind"]
    has_cls = "cls" in kinds
    if params.features in ("cls", "cls_mean_patch") and not has_cls:
        raise StepError(
            f"train_probe: features is {params.features!r}, but the model has no CLS token; set it to "
            "'mean_patch' or 'auto'"
        )
    auto: Features = "cls_mean_patch" if has_cls else "mean_patch"
    return auto if params.features == "auto" else params.features, int((kinds != "patch").sum())


def _check_classes(images: xr.Dataset, train: Tensor) -> None:
    import torch

    counts = torch.bincount(train, minlength=images.sizes["class"]).numpy()
    absent = images["class_name"].values[counts == 0].tolist()
    if absent:
        shown = ", ".join(absent[:5]) + (", …" if len(absent) > 5 else "")
        raise StepError(
            f"train_probe: {len(absent)} of {len(counts)} classes have no training image ({shown}): load "
            "more images, lower test_fraction, or leave these classes out"
        )


def _read(
    vit: HookedViT, images: xr.Dataset, reads: Features, n_prefix: int, params: Params, job: Job
) -> Tensor:
    """The features of all images, [image, feature], float32; goes on from the checkpoint if there is one."""
    import torch

    from prisma_steps.models.hooked import HookedViT
    from prisma_steps.models.probe import FeatureHead

    reader = HookedViT(vit.model, FeatureHead(reads, n_prefix), preprocessing=vit.preprocessing)
    count = images.sizes["image"]
    state = job.checkpoint.load()
    parts: list[Tensor] = [] if state is None else [state["features"]]
    done = sum(map(len, parts))
    while done < count:
        parts.append(_read_batch(reader, images, slice(done, min(done + params.batch_size, count))))
        done += len(parts[-1])
        if job.checkpoint.due():
            job.checkpoint.save({"features": torch.cat(parts)})
        job.progress(done, count, "images read")
    return torch.cat(parts)


def _read_batch(reader: HookedViT, images: xr.Dataset, where: slice) -> Tensor:
    import torch

    from prisma_steps.data.pixels import raw_batch
    from prisma_steps.models.inputs import InputError

    try:
        with torch.no_grad():
            features = reader(reader.preprocess(raw_batch(images, where))).cpu()
    except InputError as error:
        raise StepError(f"train_probe: {error}") from error
    broken = (~features.isfinite()).any(1).nonzero().flatten().tolist()
    if broken:
        name = images["image"].values[where][broken[0]]
        raise StepError(f"train_probe: image {name!s}: a feature that the model makes of it is not finite")
    return features


def _fit(features: Tensor, classes: Tensor, n_classes: int, params: Params, job: Job) -> Fit:
    from prisma_steps.models.probe import NotConvergedError, fit

    def report(iteration: int, loss: float) -> None:
        job.progress(len(features), len(features), f"fit: iteration {iteration}, loss {loss:.3f}")

    try:
        return fit(features.to(job.device), classes.to(job.device), n_classes, params.l2, report)
    except NotConvergedError as error:
        raise StepError(f"train_probe: {error}. Raise l2.") from error


def _probe(found: Fit, reads: Features, n_prefix: int) -> LinearProbe:
    from prisma_steps.models.heads import LinearProbe

    return LinearProbe(found.weight.float().cpu(), found.bias.float().cpu(), reads, n_prefix)


def _measured(found: Fit, images: xr.Dataset) -> xr.Dataset:
    import numpy as np
    import xarray as xr

    return xr.Dataset(
        {"loss": ("step", np.array(found.objective))},
        coords={"step": np.arange(len(found.objective)), "class_name": images["class_name"].variable},
    )


def _quality(probe: LinearProbe, side: str, features: Tensor, classes: Tensor) -> dict[str, Any]:
    """Accuracy, mean cross-entropy and number of the images of one side of the split."""
    from torch.nn import functional as F

    logits = F.linear(features, probe.weight, probe.bias)
    return {
        f"{side}_accuracy": (logits.argmax(-1) == classes).double().mean().item(),
        f"{side}_loss": F.cross_entropy(logits.double(), classes).item(),
        f"n_{side}": len(classes),
    }
