"""Step ``evaluate_sae``: how good a dictionary is, measured in the model that it explains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prisma_steps.schema import Dictionary, Images, Model, Quality, label
from prisma_steps.step import Artifact, Field, Job, StepError, StepParams, step

if TYPE_CHECKING:
    import xarray as xr

    from prisma_steps.models.hooked import HookedViT
    from prisma_steps.sae.evaluation import Evaluation


#: Attributes of a dictionary that tell one of a grid from another; a site that exists once has no layer.
PLACE = ("site", "layer", "architecture", "sparsity_setting")


class Params(StepParams):
    """Settings of one evaluation."""

    n_images: int | None = Field(
        None, gt=0, description="images to evaluate on, from the first; all of them if left out"
    )
    batch_size: int = Field(
        64, gt=0, description="images run at once", json_schema_extra={"not_in_key": True}
    )


@step(inputs={"sae": Dictionary, "model": Model, "images": Images}, output=Quality)
def evaluate_sae(
    sae: xr.Dataset, model: Artifact, images: xr.Dataset, params: Params, job: Job
) -> xr.Dataset:
    """Measure a dictionary: reconstruction, sparsity, and what the model loses when it reads x̂ for x.

    The model runs anew at the dictionary's site, layer and tokens, once as it is and once each with the site
    replaced by x̂, by 0, and by x̂ with the error term added back. Every metric is a ratio of sums over the
    whole evaluation set, in float64.

    Returns:
        L0, MSE, FVU, explained variance and cosine similarity along ``token_kind``: "all" (the tokens that
        the dictionary was trained on) and each kind among them. Cross-entropies and shares of alive, dead and
        dense latents. Firing frequencies and decoder cosine along ``latent``. Where the dictionary belongs,
        and its sparsity, as scalar coordinates.

    Raises:
        StepError: when there are fewer images than asked for, or the model has no such site, no head, or
            fewer classes than the images.
    """
    from prisma_steps.models.loading import load_model

    n_images = images.sizes["image"] if params.n_images is None else params.n_images
    if n_images > images.sizes["image"]:
        raise StepError(f"n_images = {n_images}, but there are only {images.sizes['image']} images: lower it")
    vit = load_model(model, job.device)
    _check_classes(vit, images)
    evaluation = _prepare(sae, vit, job.device)
    _run(evaluation, vit, images.isel(image=slice(n_images)), params.batch_size, job)
    return label(_quality_dataset(evaluation, sae))


def _check_classes(vit: HookedViT, images: xr.Dataset) -> None:
    """Refuse a model whose cross-entropy on these images is not defined."""
    if vit.n_classes == 0:
        raise StepError(
            "evaluate_sae: the model has no classes, and cross-entropies need logits. Give it a head: put a "
            "train_probe node between the model and this one, or, for a CLIP or SigLIP, set class_names and "
            "templates of load_model"
        )
    n_classes = images.sizes.get("class", 0)
    if n_classes > vit.n_classes:
        raise StepError(
            f"evaluate_sae: the images have {n_classes} classes, the model {vit.n_classes}: give images of "
            "the classes that the model tells apart, or train a probe for these (train_probe)"
        )


def _prepare(sae: xr.Dataset, vit: HookedViT, device: str) -> Evaluation:
    """An evaluation at the place that the dictionary was trained on.

    Raises:
        StepError: when the model has no such place.
    """
    from prisma_steps.models.sites import SiteError, check_keys
    from prisma_steps.sae.evaluation import Evaluation
    from prisma_steps.sae.formats import load_dictionary

    site, layer = sae.attrs["site"], sae.attrs.get("layer")
    try:
        check_keys([(site, layer)], vit.sites, vit.n_layers)
    except SiteError as error:
        raise StepError(f"the dictionary does not belong to this model: {error}") from error
    places = vit.token_coords()
    token_kind = places["token_kind"][vit.kept_at(site, places)]
    return Evaluation(load_dictionary(sae, device), (site, layer), token_kind, sae.attrs["tokens"])


def _run(evaluation: Evaluation, vit: HookedViT, images: xr.Dataset, batch_size: int, job: Job) -> None:
    """Add all images, a batch at a time."""
    from prisma_steps.data.pixels import labels, raw_batch

    n_images, classes = images.sizes["image"], labels(images).to(job.device)
    for first in range(0, n_images, batch_size):
        where = slice(first, min(first + batch_size, n_images))
        evaluation.add(vit, vit.preprocess(raw_batch(images, where)), classes[where])
        job.progress(where.stop, n_images, "images")


def _quality_dataset(evaluation: Evaluation, sae: xr.Dataset) -> xr.Dataset:
    """The metrics with their labels."""
    import xarray as xr

    groups = evaluation.by_token_kind()
    curves = {name: ("token_kind", [group[name] for group in groups.values()]) for name in groups["all"]}
    latents = {name: ("latent", values.numpy()) for name, values in evaluation.by_latent().items()}
    place = {name: sae.attrs[name] for name in PLACE if name in sae.attrs}
    return xr.Dataset(
        {**curves, **evaluation.scalars(), **latents},
        coords={"token_kind": list(groups), **place},
        attrs=sae.attrs,
    )
