"""Step ``evaluate_sae``: how good a dictionary is, measured in the model that it explains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prisma_steps.job import Job
from prisma_steps.schema import Dictionary, Images, Model, Quality, label
from prisma_steps.step import Artifact, Field, StepError, StepParams, step

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from prisma_steps.models.hooked import HookedViT
    from prisma_steps.sae.evaluation import Evaluation
    from prisma_steps.sae.place import Place


class Params(StepParams):
    """Settings of one evaluation."""

    n_images: int | None = Field(
        None, gt=0, description="images to evaluate on, from the first; all of them if left out"
    )
    cross_entropy: bool = Field(
        True,
        description="also run the model with its site replaced, for CE and top-1; false for a model without "
        "classes, or images without",
        json_schema_extra={"as_before": True},
    )
    batch_size: int = Field(
        64, gt=0, description="images run at once", json_schema_extra={"not_in_key": True}
    )


@step(inputs={"sae": Dictionary, "model": Model, "images": Images}, output=Quality)
def evaluate_sae(
    sae: xr.Dataset, model: Artifact, images: xr.Dataset, params: Params, job: Job
) -> xr.Dataset:
    """Measure a dictionary: reconstruction, sparsity, and what the model loses when it reads x̂ for x.

    The model runs anew at the dictionary's sites, layers and tokens, once as it is and, with
    ``cross_entropy``, once each with what the dictionary writes replaced by ŷ, by 0, and by ŷ with the error
    term added back. An autoencoder writes the site that it reads, a transcoder its target site; of a
    crosscoder one layer at a time is replaced. Every metric is a ratio of sums over the whole evaluation set,
    in float64.

    Returns:
        L0, MSE, FVU, explained variance and cosine similarity along ``token_kind``: "all" (the tokens that
        the dictionary was trained on) and each kind among them; but for L0, along ``layer`` too for a
        crosscoder. CE in nat and top-1 of every run, and CE recovered in percent. Of a zero-shot head, these
        are at the model's own temperature, and CE is given ``…_without_temperature`` as well: that of the
        cosines themselves, as ViT-Prisma has it, whose range is narrow (temperature does not change top-1).
        Shares of alive, dead and dense latents. Along ``latent``, firing frequencies, activation where it
        fires, state, and decoder norms and neighbours. Where the dictionary belongs, and its sparsity, as
        scalar coordinates.

    Raises:
        StepError: when there are fewer images than asked for, or the model has no such site, no head, or
            fewer classes than the images.
    """
    from prisma_steps.models.loading import load_model

    n_images = images.sizes["image"] if params.n_images is None else params.n_images
    if n_images > images.sizes["image"]:
        raise StepError(f"n_images = {n_images}, but there are only {images.sizes['image']} images: lower it")
    vit = load_model(model, job.device)
    if params.cross_entropy:
        _check_classes(vit, images)
    evaluation = _prepare(sae, vit, job.device)
    _run(evaluation, vit, images.isel(image=slice(n_images)), params, job)
    return label(_quality_dataset(evaluation, sae))


def _check_classes(vit: HookedViT, images: xr.Dataset) -> None:
    """Refuse a model whose cross-entropy on these images is not defined."""
    from prisma_steps.models.classes import labels_of, require_classes

    without = "set cross_entropy: false, for all metrics that need none"
    require_classes(vit, "evaluate_sae", without)
    otherwise = f"train a probe for these (train_probe), or {without}"
    # By number: folders of ImageNet bear ids of WordNet, and a zero-shot head the names that it is made of.
    labels_of(vit, images, "evaluate_sae", otherwise, same_names=False)


def _prepare(sae: xr.Dataset, vit: HookedViT, device: str) -> Evaluation:
    """An evaluation at the place that the dictionary was trained on.

    Raises:
        StepError: when the model has no such place.
    """
    from prisma_steps.models.sites import SiteError, check_keys
    from prisma_steps.sae.evaluation import Evaluation
    from prisma_steps.sae.labelled import load_dictionary
    from prisma_steps.sae.place import place_of

    place = place_of(sae, vit.sites)
    try:
        check_keys((*place.reads, *place.writes), vit.sites, vit.n_layers)
    except SiteError as error:
        raise StepError(f"the dictionary does not belong to this model: {error}") from error
    return Evaluation(load_dictionary(sae, device), place, _token_kind(vit, place), _cosines(vit))


def _token_kind(vit: HookedViT, place: Place) -> np.ndarray:
    """Kind of each token of the sites that a dictionary reads and writes.

    Raises:
        StepError: when they have not the same tokens.
    """
    import numpy as np

    places = vit.token_coords()
    sites = list(dict.fromkeys(site for site, _ in (*place.reads, *place.writes)))
    kept = [vit.kept_at(site, places) for site in sites]
    kinds = [np.array(["pooled"]) if at is None else places["token_kind"][at] for at in kept]
    for site, found in zip(sites, kinds, strict=True):
        if not np.array_equal(found, kinds[0]):
            raise StepError(
                f"{site} has not the tokens of {sites[0]}: no dictionary goes from one to the other"
            )
    return kinds[0]


def _cosines(vit: HookedViT) -> Any:
    """What takes temperature and bias off the logits of a zero-shot head; None for other heads."""
    from prisma_steps.models.heads import ZeroShotHead

    head = vit.head
    if not isinstance(head, ZeroShotHead):
        return None
    return lambda logits: (logits.double() - head.bias) / head.scale


def _run(evaluation: Evaluation, vit: HookedViT, images: xr.Dataset, params: Params, job: Job) -> None:
    """Add all images, a batch at a time."""
    from prisma_steps.data.pixels import labels, raw_batch

    n_images = images.sizes["image"]
    classes = labels(images).to(job.device) if params.cross_entropy else None
    for first in range(0, n_images, params.batch_size):
        where = slice(first, min(first + params.batch_size, n_images))
        pixels = vit.preprocess(raw_batch(images, where))
        evaluation.add(vit, pixels, None if classes is None else classes[where])
        job.progress(where.stop, n_images, "images")


def _quality_dataset(evaluation: Evaluation, sae: xr.Dataset) -> xr.Dataset:
    """The metrics with their labels: along ``layer`` what a crosscoder has of each."""
    import xarray as xr

    from prisma_steps.sae.place import labels_of

    of_sites, replaced = evaluation.by_token_kind(), evaluation.replaced()
    by_layer = sae.attrs["kind"] == "crosscoder"
    kinds = list(of_sites[0])
    data: dict[str, Any] = {}
    for name in of_sites[0]["all"]:
        values = [[groups[kind][name] for kind in kinds] for groups in of_sites]
        shared = not by_layer or name in ("l0", "n_tokens")
        data[name] = ("token_kind", values[0]) if shared else (("layer", "token_kind"), values)
    for name in replaced[0] if replaced else ():
        values = [site[name] for site in replaced]
        data[name] = ("layer", values) if by_layer else values[0]
    latents = {name: ("latent", values) for name, values in evaluation.by_latent().items()}
    return xr.Dataset(
        {**data, **evaluation.clean(), **evaluation.density(), **latents},
        coords={
            "token_kind": kinds,
            **labels_of(sae),
            **({"layer": sae["layer"].values} if by_layer else {}),
        },
        attrs=sae.attrs,
    )
