"""Step ``logit_lens``: what the model's head says of every token at every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prisma_steps.job import Job
from prisma_steps.parts import first_images, images_of_part
from prisma_steps.schema import Images, Lens, Model, label
from prisma_steps.step import Artifact, Blocks, Field, InParts, StepError, step

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from prisma_steps.analysis.logit_lens import Correct
    from prisma_steps.models.hooked import HookedViT

#: Memory that a block of images may take on its way through the lens.
BLOCK_BYTES = 2**28

_CELLS = ("image", "layer", "token")


class Params(InParts):
    """What to keep of the logits."""

    top: int = Field(5, gt=0, description="classes kept of each token, from the one with the highest logit")
    correct_class: bool = Field(
        True,
        description="rate the class of the image too; false for images of classes that the model does not "
        "know, or of none",
    )
    n_images: int | None = Field(None, gt=0, description="the first images only; all of them if left out")


@step(inputs={"model": Model, "images": Images}, output=Lens)
def logit_lens(model: Artifact, images: xr.Dataset, params: Params, job: Job) -> Blocks:
    """Apply the model's own final norm and head to the residual stream of every layer.

    ``layer`` counts the blocks that lie before the stream: 0 is the embedding, n_layers the end. A token is
    read alone: its logits are those of a sequence in which every token is this one, whatever the head pools.
    At the end, CLS has the model's logits where the head reads CLS; where it reads the mean of normed tokens
    the model's logits are the mean of theirs. ``exit_…`` is what the head says of the whole stream of a
    layer; at the end, the model's answer, whatever its head.

    Returns:
        Along image, layer and token: ``top_class`` and ``top_logit`` (with ``place`` too; place 0, laid out
        by ``patch_row`` and ``patch_col``, is a map of classes), and with ``correct_class`` the correct
        class's ``correct_logit``, ``correct_rank`` (0 is the top), ``correct_probability`` and ``ce``.
        Along image and layer ``exit_class``, and likewise ``exit_logit``, ``exit_rank``,
        ``exit_probability`` and ``exit_ce``.

    Raises:
        StepError: when the model has no head, fewer classes than ``top``, or others than the images, and when
            there are fewer images than asked for.
    """
    from prisma_steps.models.classes import labels_of, require_classes
    from prisma_steps.models.loading import load_model

    vit = load_model(model, job.device)
    require_classes(vit, "logit_lens")
    if params.top > vit.n_classes:
        raise StepError(f"logit_lens: top is {params.top}, but the model has only {vit.n_classes} classes")
    chosen = images_of_part(first_images(images, params.n_images, "logit_lens"), params)
    vit.check_images(chosen["pixels"].shape[1:])
    otherwise = "set correct_class: false"
    classes = labels_of(vit, chosen, "logit_lens", otherwise) if params.correct_class else None
    return _blocks(vit.for_inference(), chosen, classes, params, job)


def _blocks(vit: HookedViT, images: xr.Dataset, classes: Tensor | None, params: Params, job: Job) -> Blocks:
    import torch
    import xarray as xr

    from prisma_steps.analysis.logit_lens import lens_bytes
    from prisma_steps.data.pixels import raw_batch

    template, count = _template(vit, images, params), images.sizes["image"]

    @torch.no_grad()
    def make(where: slice) -> xr.Dataset:
        pixels = vit.preprocess(raw_batch(images, where))
        read = _read(vit, pixels, None if classes is None else classes[where].to(job.device), params.top)
        job.progress(min(where.stop, count), count, "images")
        data = {
            name: (template[name].dims, value.cpu().numpy().astype(template[name].dtype))
            for name, value in read.items()
        }
        return xr.Dataset(data, {"image": template["image"].values[where]})

    return Blocks(label(template), max(1, BLOCK_BYTES // lens_bytes(vit)), make)


def _read(vit: HookedViT, pixels: Tensor, classes: Tensor | None, top: int) -> dict[str, Tensor]:
    """The variables of a block, by name."""
    import torch

    from prisma_steps.analysis import logit_lens as kernel

    by_layer = []
    for resid in kernel.residual_stream(vit, pixels):
        alone, whole = kernel.token_logits(vit, resid), kernel.exit_logits(vit, resid)
        logit, place = kernel.top_classes(alone, top)
        found = {"top_logit": logit, "top_class": place, "exit_class": whole.argmax(-1)}
        if classes is not None:
            found |= _rated(kernel.rate(alone, classes), "correct_") | _rated(
                kernel.rate(whole, classes), "exit_"
            )
        by_layer.append(found)
    return {name: torch.stack([found[name] for found in by_layer], dim=1) for name in by_layer[0]}


def _rated(correct: Correct, prefix: str) -> dict[str, Tensor]:
    """The variables that say how the correct class is rated."""
    named = {f"{prefix}{name}": value for name, value in correct._asdict().items()}
    return {{"correct_ce": "ce"}.get(name, name): value for name, value in named.items()}


def _template(vit: HookedViT, images: xr.Dataset, params: Params) -> xr.Dataset:
    import dask.array as da
    import numpy as np
    import xarray as xr

    from prisma_steps.models.cache import along_image

    tokens = vit.token_coords()
    sizes = {
        "image": images.sizes["image"],
        "layer": vit.n_layers + 1,
        "token": len(tokens["token_kind"]),
        "place": params.top,
    }
    data = {
        name: (dims, da.zeros([sizes[dim] for dim in dims], dtype=dtype))
        for name, (dims, dtype) in _variables(params).items()
    }
    coords: dict[str, Any] = {dim: np.arange(size) for dim, size in sizes.items() if dim != "image"}
    coords |= {name: ("token", values) for name, values in tokens.items()}
    if vit.class_names is not None:
        coords["class_name"] = ("class", np.array(vit.class_names))
    carried = {name: coord.variable for name, coord in along_image(images).items()}
    if not params.correct_class:
        carried.pop("label", None)  # it counts other classes than those of the logits
    return xr.Dataset(data, {**carried, **coords})


def _variables(params: Params) -> dict[str, tuple[tuple[str, ...], str]]:
    """Dims and dtype of every variable."""
    found: dict[str, tuple[tuple[str, ...], str]] = {
        "top_class": ((*_CELLS, "place"), "int32"),
        "top_logit": ((*_CELLS, "place"), "float32"),
        "exit_class": (_CELLS[:2], "int32"),
    }
    if params.correct_class:
        rated = {"logit": "float32", "rank": "int32", "probability": "float32", "ce": "float32"}
        for name, dtype in rated.items():
            found["ce" if name == "ce" else f"correct_{name}"] = (_CELLS, dtype)
            found[f"exit_{name}"] = (_CELLS[:2], dtype)
    return found
