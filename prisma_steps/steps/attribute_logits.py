"""Step ``attribute_logits``: what each component of a model adds to a logit, on the direct path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from prisma_steps.job import Job
from prisma_steps.parts import first_images, images_of_part
from prisma_steps.schema import Attribution, Images, Model, label
from prisma_steps.step import Artifact, Blocks, Field, InParts, step

if TYPE_CHECKING:
    from collections.abc import Callable

    import xarray as xr
    from torch import Tensor

    from prisma_steps.models.hooked import HookedViT

#: Memory that the activations of a block of images may take.
BLOCK_BYTES = 2**28


class Params(InParts):
    """Which logit to take apart."""

    logit: int | str = Field(
        "label",
        description="the class whose logit it is: label (the image's own), top1 (the model's answer), or the "
        "name or number of a class",
    )
    minus: int | str | None = Field(
        None,
        description="the class whose logit is subtracted: runner_up (the highest but that of `logit`), "
        "label, top1, or the name or number of a class; null subtracts nothing",
    )
    by_token: bool = Field(False, description="also through every token; for heads that read more than CLS")
    n_images: int | None = Field(None, gt=0, description="the first images only; all of them if left out")

    @model_validator(mode="after")
    def _two_classes(self) -> Params:
        if self.logit == self.minus:
            raise ValueError(f"`minus` is {self.minus!r}, as `logit` is: the difference is 0")
        if self.logit == "runner_up":
            raise ValueError("`logit` cannot be runner_up, which is the highest but that of `logit`")
        return self


@step(inputs={"model": Model, "images": Images}, output=Attribution)
def attribute_logits(model: Artifact, images: xr.Dataset, params: Params, job: Job) -> Blocks:
    """Take apart the logit of a class, or the difference of two, into what each component adds to it.

    Direct logit attribution (Elhage et al. 2021, transformer-circuits.pub/2021/framework): with the scale of
    the final norm (and of a norm before the first block, and the length of a zero-shot embedding) kept as the
    run has it, a logit is the sum of what patches, positions, CLS and other tokens, every head (z W_O), every
    MLP, and every bias add to it; LayerScale is in them. Sums are in float64 and are checked: to 1e-4 of the
    logit, or of 1 where it is smaller.

    Returns:
        ``logit_contribution`` along image and component, whose sum over component is ``attributed_logit``;
        with ``by_token``, ``token_logit_contribution`` along token too (NaN for components that are of no
        token: the bias of the head, and that of a final norm of pooled tokens). ``attributed_class``, and
        ``subtracted_class`` with ``minus``, along image. Kind, layer and head are coordinates of component.

    Raises:
        StepError: when the model has no head, none that is linear, no LayerNorm at its end or no such class,
            when the images have other classes or none and ``label`` is asked for, and when there are fewer
            images than asked for.
    """
    from prisma_steps.models.classes import require_classes
    from prisma_steps.models.loading import load_model

    vit = load_model(model, job.device)
    require_classes(vit, "attribute_logits")
    chosen = images_of_part(first_images(images, params.n_images, "attribute_logits"), params)
    vit.check_images(chosen["pixels"].shape[1:])
    return _blocks(vit, chosen, _chooser(vit, chosen, params), params, job)


def _chooser(
    vit: HookedViT, images: xr.Dataset, params: Params
) -> Callable[[slice, Tensor], tuple[Tensor, Tensor | None]]:
    """What gives, for some images and their prepared pixels, the class of each and the one to subtract."""
    import torch

    from prisma_steps.models.classes import class_names, labels_of, number_of_class

    asked = {params.logit, params.minus} - {None}
    otherwise = "set `logit` and `minus` to top1, runner_up, or a class"
    labels = labels_of(vit, images, "attribute_logits", otherwise) if "label" in asked else None
    names = class_names(vit, images)
    numbers = {
        name: number_of_class(names, name, "attribute_logits")
        for name in asked
        if name is not None and name not in ("label", "top1", "runner_up")
    }

    def choose(where: slice, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        logits = vit(pixels) if asked & {"top1", "runner_up"} else None

        def of(name: int | str) -> Tensor:
            if name == "label" and labels is not None:
                return labels[where].to(pixels.device)
            if logits is not None and name == "top1":
                return logits.argmax(-1)
            return torch.full((len(pixels),), numbers[name], device=pixels.device)

        plus = of(params.logit)
        if params.minus == "runner_up" and logits is not None:
            return plus, logits.scatter(1, plus[:, None], -torch.inf).argmax(-1)
        return plus, None if params.minus is None else of(params.minus)

    return choose


def _blocks(
    vit: HookedViT,
    images: xr.Dataset,
    choose: Callable[[slice, Tensor], tuple[Tensor, Tensor | None]],
    params: Params,
    job: Job,
) -> Blocks:
    import torch
    import xarray as xr

    from prisma_steps.analysis.attribution import attribute
    from prisma_steps.data.pixels import raw_batch

    template, count = _template(vit, images, params), images.sizes["image"]

    @torch.no_grad()
    def make(where: slice) -> xr.Dataset:
        pixels = vit.preprocess(raw_batch(images, where))
        plus, minus = choose(where, pixels)
        found = attribute(vit, pixels, plus, minus)
        values = {
            "logit_contribution": found.contribution,
            "token_logit_contribution": found.by_token,
            "attributed_logit": found.logit,
            "attributed_class": plus,
            "subtracted_class": minus,
        }
        job.progress(min(where.stop, count), count, "images")
        data = {
            name: (variable.dims, values[str(name)].cpu().numpy().astype(variable.dtype))
            for name, variable in template.data_vars.items()
        }
        return xr.Dataset(data, {"image": template["image"].values[where]})

    # Every site that is kept, in float32; what is made of one layer at a time is small beside them.
    n_tokens = len(vit.token_coords()["token_kind"])
    per_image = 4 * n_tokens * vit.d_model * (2 * vit.n_layers + 8)
    return Blocks(label(template), max(1, BLOCK_BYTES // per_image), make)


def _template(vit: HookedViT, images: xr.Dataset, params: Params) -> xr.Dataset:
    import dask.array as da
    import numpy as np
    import xarray as xr

    from prisma_steps.analysis.attribution import components_of
    from prisma_steps.models.cache import along_image

    components, tokens = components_of(vit), vit.token_coords()
    sizes = {
        "image": images.sizes["image"],
        "component": len(components),
        "token": len(tokens["token_kind"]),
    }
    data = {
        name: (dims, da.zeros([sizes[dim] for dim in dims], dtype=dtype))
        for name, (dims, dtype) in _variables(params).items()
    }
    coords: dict[str, Any] = {str(name): coord.variable for name, coord in along_image(images).items()}
    coords["component"] = np.array([component.name for component in components])
    for place in ("kind", "layer", "head"):
        values = np.array([getattr(component, place) for component in components])
        coords[f"component_{place}"] = ("component", values)
    if params.by_token:
        coords["token"] = np.arange(sizes["token"])
        coords |= {name: ("token", values) for name, values in tokens.items()}
    if vit.class_names is not None:
        coords["class_name"] = ("class", np.array(vit.class_names))
    if "label" not in (params.logit, params.minus):
        coords.pop("label", None)  # it may count other classes than those of the logits
    return xr.Dataset(data, coords)


def _variables(params: Params) -> dict[str, tuple[tuple[str, ...], str]]:
    """Dims and dtype of every variable."""
    found: dict[str, tuple[tuple[str, ...], str]] = {
        "logit_contribution": (("image", "component"), "float32"),
        "attributed_logit": (("image",), "float32"),
        "attributed_class": (("image",), "int32"),
    }
    if params.minus is not None:
        found["subtracted_class"] = (("image",), "int32")
    if params.by_token:
        found["token_logit_contribution"] = (("image", "component", "token"), "float32")
    return found
