"""Ablate one site of every layer, or every head of it, and measure what the model loses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from prisma_steps.job import Job
from prisma_steps.schema import SITE_DIMS, SITES_WITHOUT_LAYER, Ablation, Images, Model, label
from prisma_steps.seeding import numpy_generator
from prisma_steps.step import Artifact, Field, SiteName, StepError, StepParams, step

if TYPE_CHECKING:
    import numpy as np
    import torch
    import xarray as xr

    from prisma_steps.analysis.ablation import Ablations
    from prisma_steps.models.hooked import HookedViT

#: Sites that can be ablated.
SITES = tuple(
    site
    for site, dims in SITE_DIMS.items()
    if dims[:2] == ("image", "token") and site not in SITES_WITHOUT_LAYER
)


class Params(StepParams):
    """What to ablate, and what takes its place."""

    site: SiteName = Field(
        description="site to ablate in one layer after another; where it has heads (z, q, k, v, result), in "
        "one head after another"
    )
    layers: Literal["all", "last"] | list[int] = Field("all", description="blocks, counted from 0")
    tokens: Literal["all", "cls", "register", "patch"] | list[int] = Field(
        "all", description="tokens to ablate at once: all, those of a kind, or positions in the sequence"
    )
    ablations: list[Literal["zero", "mean", "mean_per_token", "resample"]] = Field(
        ["zero", "mean", "mean_per_token", "resample"],
        description="what takes the activation's place: zeros; its mean over the reference images and the "
        "ablated tokens; its mean over them at the same token; that of one other of them at the same token",
    )
    n_images: int | None = Field(None, gt=0, description="the first images only; null takes all")
    n_reference: int | None = Field(None, gt=0, description="the first reference images only; null takes all")
    seed: int = Field(0, ge=0, description="seed of the draw of the image that resample takes for each")
    memory_mb: int = Field(
        1024,
        gt=0,
        description="mebibytes for activations; the model's weights come on top",
        json_schema_extra={"not_in_key": True},
    )

    @field_validator("site")
    @classmethod
    def _of_tokens(cls, site: str) -> str:
        if site not in SITES:
            raise ValueError(f"{site!r} cannot be ablated: expected one of {', '.join(SITES)}")
        return site

    @field_validator("layers", "tokens", "ablations")
    @classmethod
    def _each_once(cls, asked: Any) -> Any:
        if isinstance(asked, list) and (not asked or len(set(asked)) < len(asked)):
            raise ValueError(f"name at least one, each once; got {asked}")
        return asked


@step(inputs={"model": Model, "images": Images, "reference": Images}, output=Ablation)
def ablate_activations(
    model: Artifact, images: xr.Dataset, reference: xr.Dataset, params: Params, job: Job
) -> xr.Dataset:
    """Ablate a site layer by layer, or head by head, and measure cross-entropy and top-1.

    ``reference`` gives means, in a first pass, and the activations that are resampled; it may be ``images``
    themselves. For each image one of the other reference images is drawn. Sums are in float64, over all
    images.

    Returns:
        See ``effects_of_ablations``.

    Raises:
        StepError: as ``effects_of_ablations``.
    """
    from prisma_steps.models.loading import load_model

    return effects_of_ablations(load_model(model, job.device), images, reference, params, job)


def effects_of_ablations(
    vit: HookedViT, images: xr.Dataset, reference: xr.Dataset, params: Params, job: Job
) -> xr.Dataset:
    """What the step ``ablate_activations`` returns, of a model in memory.

    Returns:
        ``ce_ablated`` (nat), ``top1_ablated``, ``ce_increase`` and its standard error over images, along
        ablation, layer, and head where the site has heads; ``ce`` and ``top1`` of the plain run.

    Raises:
        StepError: when the model has no such site, layer, token or no head, the images have no classes or
            others than the model, there are fewer images than asked for, or no other image to resample.
    """
    from prisma_steps.analysis.ablation import Effects
    from prisma_steps.analysis.cells import budget
    from prisma_steps.memory import reused_memory
    from prisma_steps.models.classes import labels_of, require_classes

    require_classes(vit, "ablate_activations")
    images = _first(images, params.n_images, "n_images")
    reference = _first(reference, params.n_reference, "n_reference")
    layers, tokens = _layers(vit, params), _tokens(vit, params)
    labels = labels_of(vit, images, "ablate_activations", "train a probe for these (train_probe)").to(
        vit.device
    )
    others = _others(images, reference, params) if "resample" in params.ablations else None
    fast = vit.for_inference()
    memory = budget(vit, params.memory_mb, _floats_read(vit, params.site, layers))
    with reused_memory():
        sweep = _sweep(fast, reference, layers, tokens, memory.images, params, job)
        effects = Effects(fast, sweep, memory.rows, job.checkpoint.load())
        for where in _slices(images.sizes["image"], memory.images, effects.n_images):
            drawn = None if others is None else _pixels(fast, reference, others[where])
            effects.add(_pixels(fast, images, where), labels[where], drawn)
            job.progress(where.stop, images.sizes["image"], "images")
            if job.checkpoint.due():
                job.checkpoint.save(effects.state)
    return label(_labelled(effects.results(), sweep, images, reference, params))


def _first(images: xr.Dataset, count: int | None, name: str) -> xr.Dataset:
    there = images.sizes["image"]
    if count is not None and count > there:
        raise StepError(f"ablate_activations: {name} is {count}, but there are only {there} images")
    return images.isel(image=slice(count))


def _layers(vit: HookedViT, params: Params) -> list[int]:
    """Numbers of the blocks, once they and the site are known to exist."""
    from prisma_steps.models.sites import SiteError

    named = {"all": range(vit.n_layers), "last": [vit.n_layers - 1]}
    layers = list(named[params.layers] if isinstance(params.layers, str) else params.layers)
    try:
        vit.site_keys([params.site], layers)
    except SiteError as error:
        raise StepError(f"ablate_activations: {error}") from error
    return layers


def _tokens(vit: HookedViT, params: Params) -> torch.Tensor:
    """Positions in the sequence."""
    import torch

    kinds = vit.token_coords()["token_kind"]
    if isinstance(params.tokens, list):
        strange = [token for token in params.tokens if token not in range(len(kinds))]
        if strange:
            raise StepError(
                f"ablate_activations: no token {strange[0]}: the model has tokens 0 to {len(kinds) - 1}"
            )
        return torch.tensor(params.tokens, device=vit.device)
    chosen = (kinds == params.tokens) | (params.tokens == "all")
    if not chosen.any():
        there = ", ".join(dict.fromkeys(kinds.tolist()))
        raise StepError(f"ablate_activations: the model has no {params.tokens} token, only {there}")
    return torch.from_numpy(chosen.nonzero()[0]).to(vit.device)


def _floats_read(vit: HookedViT, site: str, layers: list[int]) -> int:
    """Floats that the site's values take, of one image."""
    sizes = {"head": vit.n_heads, "d_head": vit.d_head, "d_model": vit.d_model, "d_mlp": vit.d_mlp}
    n_tokens = len(vit.token_coords()["token_kind"])
    return len(layers) * n_tokens * prod(sizes[dim] for dim in SITE_DIMS[site][2:])


def _others(images: xr.Dataset, reference: xr.Dataset, params: Params) -> np.ndarray:
    """For each image the number of a reference image that is another, any of them with the same chance."""
    import numpy as np

    ids = reference["image"].values.tolist()
    place = {name: number for number, name in enumerate(ids)}
    own = np.array([place.get(name, len(ids)) for name in images["image"].values.tolist()])
    choices = len(ids) - (own < len(ids))
    if not choices.all():
        raise StepError(
            "ablate_activations: resample takes the activations of another image, and the reference holds "
            "one image alone: give more, or leave resample out of ablations"
        )
    drawn = numpy_generator(params.seed, "ablate_activations/resample").integers(choices)
    return drawn + (drawn >= own)


def _sweep(
    vit: HookedViT,
    reference: xr.Dataset,
    layers: list[int],
    tokens: torch.Tensor,
    at_once: int,
    params: Params,
    job: Job,
) -> Ablations:
    """What is ablated, with the means that it takes."""
    from prisma_steps.analysis.ablation import MEANS, Ablations, token_means

    count = reference.sizes["image"]

    def batches() -> Iterator[torch.Tensor]:
        for where in _slices(count, at_once):
            yield _pixels(vit, reference, where)
            job.progress(where.stop, count, "reference images")

    takes_means = any(name in MEANS for name in params.ablations)
    means = token_means(vit, batches(), params.site, layers) if takes_means else None
    return Ablations(params.site, layers, params.ablations, tokens, means)


def _slices(count: int, size: int, begin: int = 0) -> Iterator[slice]:
    return (slice(first, min(first + size, count)) for first in range(begin, count, size))


def _pixels(vit: HookedViT, images: xr.Dataset, where: slice | np.ndarray) -> torch.Tensor:
    from prisma_steps.data.pixels import raw_batch

    return vit.preprocess(raw_batch(images, where))


def _labelled(
    effects: Mapping[str, np.ndarray],
    sweep: Ablations,
    images: xr.Dataset,
    reference: xr.Dataset,
    params: Params,
) -> xr.Dataset:
    import numpy as np
    import xarray as xr

    dims = ("ablation", "layer", "head") if sweep.has_heads else ("ablation", "layer")
    data = {name: (dims if value.ndim else (), value) for name, value in effects.items()}
    coords: dict[str, Any] = {"ablation": list(sweep.ablations), "layer": list(sweep.layers)}
    if sweep.has_heads:
        coords["head"] = np.arange(effects["ce_ablated"].shape[2])
    attrs = {
        "site": params.site,
        "tokens": params.tokens,
        "n_images": images.sizes["image"],
        "n_reference": reference.sizes["image"],
    }
    return xr.Dataset(data, coords, attrs)
