"""Step ``steer_latents``: what a model answers when latents of a dictionary are set, raised or scaled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from prisma_steps.job import Job
from prisma_steps.schema import Dictionary, Images, Model, Steering, label
from prisma_steps.step import Artifact, Field, StepError, StepParams, step

if TYPE_CHECKING:
    import numpy as np
    import torch
    import xarray as xr

    from prisma_steps.analysis.steering import Steering as Sweep
    from prisma_steps.analysis.steering import Survey, Tokens
    from prisma_steps.models.hooked import HookedViT
    from prisma_steps.models.splicing import Splice

#: Classes that ``classes: all`` stands for, at most.
MOST_CLASSES = 100

_SHARED: Any = {"mode": ["clamp", "add"]}
_CHOSEN: Any = {"latents": ["most_active", "largest_effect"]}


class Params(StepParams):
    """Which latents to steer, where and how strongly."""

    mode: Literal["clamp", "add", "multiply"] = Field(
        "add",
        description="clamp sets a latent's activation to the strength, whether it fires or not; add adds the "
        "strength to it; multiply multiplies it by the strength: 1 changes nothing, 0 ablates",
    )
    strengths: list[float] = Field(description="how strongly: a curve of the result along them")
    units: Literal["maximum", "activation"] = Field(
        "maximum",
        description="what strengths of clamp and add count: the latent's highest activation on these images "
        "and tokens, or its activation itself, as the dictionary has it",
        json_schema_extra={"only_for": _SHARED},
    )
    latents: Literal["most_active", "largest_effect"] | list[int] = Field(
        "most_active",
        description="a list of them; those of the highest mean activation on these images and tokens; or "
        "those of the largest effect to first order, |activation × gradient of the logit of of_class|",
    )
    n_latents: int = Field(
        8,
        gt=0,
        description="latents to steer, where they are not listed",
        json_schema_extra={"only_for": _CHOSEN},
    )
    of_class: str | int | None = Field(
        None,
        description="name or number of the class of largest_effect",
        json_schema_extra={"only_for": {"latents": ["largest_effect"]}},
    )
    tokens: Literal["all", "cls", "register", "patch"] = Field(
        "all", description="tokens to steer: all that the dictionary was trained on, or one kind of them"
    )
    classes: Literal["all"] | list[str | int] = Field(
        "all",
        description=f"names or numbers of the classes to keep; all, where they are {MOST_CLASSES} or fewer",
    )
    n_images: int | None = Field(None, gt=0, description="the first images only; null takes all")
    memory_mb: int = Field(
        1024,
        gt=0,
        description="mebibytes for activations; weights of model and dictionary come on top",
        json_schema_extra={"not_in_key": True},
    )

    @field_validator("strengths", "latents", "classes")
    @classmethod
    def _each_once(cls, asked: Any) -> Any:
        if isinstance(asked, list) and (not asked or len(set(asked)) < len(asked)):
            raise ValueError(f"name at least one, each once; got {asked}")
        return asked


@step(inputs={"sae": Dictionary, "model": Model, "images": Images}, output=Steering)
def steer_latents(
    sae: xr.Dataset, model: Artifact, images: xr.Dataset, params: Params, job: Job
) -> xr.Dataset:
    """Steer latents of a dictionary, one at a time, over a grid of strengths, and read the model's answers.

    What the dictionary leaves out stays, so that the site moves along the latent's decoder row alone. A first
    pass over the images finds highest activations, and the latents where they are not listed.

    Returns:
        See ``effects_of_steering``.

    Raises:
        StepError: as ``effects_of_steering``.
    """
    from prisma_steps.models.loading import load_model
    from prisma_steps.sae.place import labels_of
    from prisma_steps.sae.placed import as_splice

    vit = load_model(model, job.device)
    found = effects_of_steering(vit, as_splice(sae, job.device), images, params, job)
    return label(found.assign_coords(labels_of(sae)))


def effects_of_steering(
    vit: HookedViT, splice: Splice, images: xr.Dataset, params: Params, job: Job
) -> xr.Dataset:
    """What the step ``steer_latents`` returns, of a model and a dictionary in memory.

    Returns:
        ``logit`` and ``probability`` (of the softmax over all classes) along latent, strength, image and
        class; those of the clean run; the mean change of both over images. Of the latents, on the steered
        tokens, ``max_activation``, ``mean_activation_over_tokens`` and, where that chose them,
        ``attribution``.

    Raises:
        StepError: for a dictionary that is a crosscoder, or of another model; for tokens that it was not
            trained on; for a latent or class that does not exist; for a model without a head; for a latent
            that never fires and so has no maximum to count strengths in.
    """
    from prisma_steps.analysis.cells import budget
    from prisma_steps.analysis.steering import Steering as Sweep
    from prisma_steps.analysis.steering import check_splice, steered_tokens
    from prisma_steps.memory import reused_memory
    from prisma_steps.models.classes import class_names, require_classes

    require_classes(vit, "steer_latents")
    n_latents = check_splice(vit, splice).shape.n_latents
    _check_listed(n_latents, params)
    images = _first(images, params)
    names, tokens = class_names(vit, images), steered_tokens(vit, splice, params.tokens)
    classes = _classes(names, params)
    # Of an image: pre-activations, latents and a temporary.
    memory = budget(vit, params.memory_mb, 3 * len(vit.token_coords()["token_kind"]) * n_latents)
    with reused_memory():
        known = _survey(
            vit, splice, tokens, _batches(vit, images, memory.images, job, "survey"), names, params
        )
        latents = _latents(known, params)
        sweep = Sweep(splice, tokens, latents, params.mode, _amounts(known, latents, params))
        batches = _batches(vit, images, memory.images, job, "steered")
        answers = _answers(vit.for_inference(), batches, sweep, classes, memory.rows)
    return label(_labelled(answers, known, sweep, images, [names[number] for number in classes], params))


def _first(images: xr.Dataset, params: Params) -> xr.Dataset:
    there = images.sizes["image"]
    if params.n_images is not None and params.n_images > there:
        raise StepError(f"steer_latents: n_images is {params.n_images}, but there are only {there} images")
    return images.isel(image=slice(params.n_images))


def _check_listed(count: int, params: Params) -> None:
    """Refuse latents that the dictionary does not have, and numbers without a class."""
    listed = params.latents if isinstance(params.latents, list) else []
    strange = [latent for latent in listed if latent not in range(count)]
    if strange:
        raise StepError(f"steer_latents: no latent {strange[0]}: the dictionary has latents 0 to {count - 1}")
    if params.latents == "largest_effect" and params.of_class is None:
        raise StepError("steer_latents: latents: largest_effect needs of_class, the class of the effect")


def _classes(names: list[str], params: Params) -> list[int]:
    """Numbers of the classes to keep."""
    from prisma_steps.models.classes import number_of_class

    if params.classes != "all":
        return [number_of_class(names, asked, "steer_latents") for asked in params.classes]
    if len(names) > MOST_CLASSES:
        raise StepError(
            f"steer_latents: the model has {len(names)} classes, and classes: all keeps up to "
            f"{MOST_CLASSES}: name those to keep"
        )
    return list(range(len(names)))


def _batches(vit: HookedViT, images: xr.Dataset, size: int, job: Job, note: str) -> Iterator[torch.Tensor]:
    from prisma_steps.data.pixels import raw_batch

    count = images.sizes["image"]
    for first in range(0, count, size):
        yield vit.preprocess(raw_batch(images, slice(first, first + size)))
        job.progress(min(first + size, count), count, note)


def _survey(
    vit: HookedViT,
    splice: Splice,
    tokens: Tokens,
    batches: Iterator[torch.Tensor],
    names: list[str],
    params: Params,
) -> Survey:
    from prisma_steps.analysis.steering import survey
    from prisma_steps.models.classes import number_of_class

    if params.latents != "largest_effect" or params.of_class is None:
        return survey(vit.for_inference(), splice, tokens, batches)
    return survey(vit, splice, tokens, batches, number_of_class(names, params.of_class, "steer_latents"))


def _latents(known: Survey, params: Params) -> torch.Tensor:
    """Numbers of the latents to steer."""
    import torch

    if isinstance(params.latents, list):
        return torch.tensor(params.latents, device=known.mean.device)
    scores = known.mean if known.attribution is None else known.attribution.abs()
    firing = int((known.highest > 0).sum())
    if firing < params.n_latents:
        raise StepError(
            f"steer_latents: n_latents is {params.n_latents}, but only {firing} latents fire on these images "
            "and tokens: lower it, give more images, or list latents"
        )
    ranked = scores.masked_fill(known.highest <= 0, -1).sort(descending=True, stable=True)
    return ranked.indices[: params.n_latents]


def _amounts(known: Survey, latents: torch.Tensor, params: Params) -> torch.Tensor:
    """Strengths in units of activation, [latent, strength]."""
    import torch

    strengths = torch.tensor(params.strengths, device=latents.device)
    if params.mode == "multiply" or params.units == "activation":
        return strengths.expand(len(latents), -1)
    highest = known.highest[latents]
    if not (highest > 0).all():
        silent = latents[highest <= 0][0].item()
        raise StepError(
            f"steer_latents: latent {silent} never fires on these images and tokens, so strengths cannot "
            "count its maximum. Set units: activation, or leave it out"
        )
    return highest[:, None] * strengths


def _answers(
    vit: HookedViT, batches: Iterator[torch.Tensor], sweep: Sweep, classes: list[int], rows: int
) -> dict[str, np.ndarray]:
    """Logits and probabilities of the classes: [image, class] of the clean run, [latent, strength, …]."""
    import torch

    from prisma_steps.analysis.steering import steered_logits

    found: dict[str, list[torch.Tensor]] = {}
    for pixels in batches:
        with torch.no_grad():
            runs = {"clean_": vit(pixels), "": steered_logits(vit, pixels, sweep, rows)}
        for name, logits in runs.items():
            probability = logits.double().softmax(-1).to(logits.dtype)
            for kind, values in (("logit", logits), ("probability", probability)):
                found.setdefault(name + kind, []).append(values[..., classes].cpu())
    return {name: torch.cat(parts, dim=-2).numpy() for name, parts in found.items()}


#: A probability is another thing in other steps.
_STEERED = {
    "logit": {"long_name": "logit of the steered run"},
    "probability": {"long_name": "probability in the steered run"},
}


def _labelled(
    answers: dict[str, np.ndarray],
    known: Survey,
    sweep: Sweep,
    images: xr.Dataset,
    names: list[str],
    params: Params,
) -> xr.Dataset:
    import xarray as xr

    clean, cells = ("image", "class"), ("latent", "strength", "image", "class")
    data: dict[str, Any] = {
        name: (clean, values) if name.startswith("clean") else (cells, values, _STEERED[name])
        for name, values in answers.items()
    }
    for kind in ("logit", "probability"):
        change = answers[kind].astype("float64") - answers[f"clean_{kind}"]
        data[f"mean_{kind}_change"] = (("latent", "strength", "class"), change.mean(2))
    of_latents = {
        "max_activation": known.highest,
        "mean_activation_over_tokens": known.mean,
        "attribution": known.attribution,
    }
    for name, values in of_latents.items():
        if values is not None:
            data[name] = ("latent", values[sweep.latents].cpu().numpy())
    shared = params.mode != "multiply"
    units = {"maximum": "highest activation of the latent", "activation": "1"}[params.units]
    coords = {
        "latent": sweep.latents.cpu().numpy(),
        "strength": ("strength", params.strengths, {"units": units if shared else "factor"}),
        "image": images["image"].values,
        "class_name": ("class", names),
    }
    attrs = {"mode": params.mode, "tokens": params.tokens}
    return xr.Dataset(data, coords, attrs)
