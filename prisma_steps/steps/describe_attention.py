"""Step ``describe_attention``: how far, how sharply and at what every head looks, over a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from prisma_steps.job import Job
from prisma_steps.parts import first_images, places_of
from prisma_steps.schema import Attention, Images, Model, label
from prisma_steps.step import Artifact, Field, StepError, StepParams, step

if TYPE_CHECKING:
    import xarray as xr

    from prisma_steps.analysis.attention import Description
    from prisma_steps.models.hooked import HookedViT
    from prisma_steps.models.sites import SiteKey, Tap

#: Memory that the patterns of a layer may take, in float64.
PATTERN_BYTES = 2**27

#: Dims before layer and head of what a description holds.
_DIMS = {
    "attention_distance": (),
    "attention_frame_distance": (),
    "attention_entropy": ("query_kind",),
    "attention_mass": ("query_kind", "key_kind"),
    "head_score": ("head_type",),
}


class Params(StepParams):
    """Which images to look at."""

    n_images: int | None = Field(None, gt=0, description="the first images only; all of them if left out")
    chosen: list[int | str] = Field(
        [],
        description="images, by place or id, of which the patterns themselves and the rollout are kept; an "
        "image takes 4 · n_layers · (n_heads + 1) · tokens² bytes",
    )

    @field_validator("chosen")
    @classmethod
    def _each_once(cls, chosen: list[int | str]) -> list[int | str]:
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"each image may be named once, got {chosen}")
        return chosen


@step(inputs={"model": Model, "images": Images}, output=Attention)
def describe_attention(model: Artifact, images: xr.Dataset, params: Params, job: Job) -> xr.Dataset:
    """Describe every head over a data set: attention distance, entropy, masses, and head-type scores.

    Means over images, of sums in float64; see ``analysis.attention``. ``uniform_…`` is the same number of
    attention that is the same to all tokens: what a score has to be compared with.

    Returns:
        Along layer and head: ``attention_distance`` in pixels of the model's input (Dosovitskiy et al. 2020,
        arXiv 2010.11929, figure 7; times the mass of patches on patches it is that without renormalisation)
        and, of clips, ``attention_frame_distance``; ``attention_entropy`` by query_kind; ``attention_mass``
        by query_kind and key_kind (CLS on patches: ``sel(query_kind="cls", key_kind="patch")``; patches on
        CLS, a sink: the reverse); ``head_score`` by head_type (see ``analysis.attention.relations``).
        Of chosen images ``pattern`` and, after every layer, ``attention_rollout`` (Abnar and Zuidema 2020,
        arXiv 2005.00928).

    Raises:
        StepError: when the model does not show its patterns, when a chosen image is not there, and when there
            are fewer images than asked for.
    """
    import torch

    from prisma_steps.analysis.attention import Description, grid_of
    from prisma_steps.models.loading import load_model

    loaded = load_model(model, job.device)
    if "pattern" not in loaded.sites:
        raise StepError(f"describe_attention: {loaded.family.missing['pattern']}")
    read, kept = (
        first_images(images, params.n_images, "describe_attention"),
        images.isel(image=places_of(images, params.chosen, "chosen", "describe_attention")),
    )
    loaded.check_images(images["pixels"].shape[1:])
    vit, grid = loaded.for_inference(), grid_of(loaded)
    description = Description(grid, vit.n_layers, job.device)
    with torch.no_grad():
        _add_all(description, vit, read, job)
        of_chosen = _of_chosen(vit, kept) if params.chosen else {}
    return _labelled(description, of_chosen, vit, kept)


def _add_all(description: Description, vit: HookedViT, images: xr.Dataset, job: Job) -> None:
    """Add all images, so many at once as patterns of a layer fit in memory."""
    from functools import partial

    from prisma_steps.data.pixels import raw_batch

    def seen(layer: int, pattern: Any) -> Any:
        description.add(layer, pattern)
        return pattern

    hooks: dict[SiteKey, Tap] = {("pattern", layer): partial(seen, layer) for layer in range(vit.n_layers)}
    count = images.sizes["image"]
    per_image = 8 * vit.n_heads * len(description.grid.kind) ** 2
    batch = max(1, PATTERN_BYTES // per_image)
    for first in range(0, count, batch):
        pixels = vit.preprocess(raw_batch(images, slice(first, first + batch)))
        vit.run_with_hooks(pixels, hooks)
        job.progress(min(first + batch, count), count, "images")


def _of_chosen(vit: HookedViT, images: xr.Dataset) -> dict[str, Any]:
    """Patterns and rollout, image by image."""
    import numpy as np

    from prisma_steps.analysis.attention import rollout
    from prisma_steps.data.pixels import raw_batch

    patterns, rolled = [], []
    for place in range(images.sizes["image"]):
        cache = vit.read(vit.preprocess(raw_batch(images, slice(place, place + 1))), ["pattern"])
        by_layer = [cache["pattern", layer] for layer in range(vit.n_layers)]
        patterns.append(np.stack([pattern[0].cpu().numpy() for pattern in by_layer]))
        rolled.append(np.stack([mixed[0].cpu().numpy() for mixed in rollout(by_layer)]))
    pairs = ("query_token", "key_token")
    return {
        "pattern": (("image", "layer", "head", *pairs), np.stack(patterns)),
        "attention_rollout": (("image", "layer", *pairs), np.stack(rolled)),
    }


def _labelled(
    description: Description, of_chosen: dict[str, Any], vit: HookedViT, kept: xr.Dataset
) -> xr.Dataset:
    import numpy as np
    import xarray as xr

    from prisma_steps.analysis.attention import relations

    described = {
        name: ((*_DIMS[name], "layer", "head"), value) for name, value in description.results().items()
    }
    uniform = {f"uniform_{name}": (_DIMS[name], value) for name, value in description.uniform().items()}
    coords: dict[str, Any] = {
        "layer": np.arange(vit.n_layers),
        "head": np.arange(vit.n_heads),
        "query_kind": description.query_kinds,
        "key_kind": description.grid.kinds,
        "head_type": list(relations(description.grid)),
    }
    if of_chosen:
        coords |= _of_pairs(vit, kept)
    data = {**described, **uniform, "n_images": description.n_images, **of_chosen}
    return label(xr.Dataset(data, coords))


def _of_pairs(vit: HookedViT, kept: xr.Dataset) -> dict[str, Any]:
    """Labels of the chosen images, and of the tokens of a pattern."""
    import numpy as np

    from prisma_steps.models.cache import along_image

    tokens = vit.token_coords()
    places = np.arange(len(tokens["token_kind"]))
    return {
        **{str(name): coord.variable for name, coord in along_image(kept).items()},
        "query_token": places,
        "key_token": places,
        **{name: ("key_token", values) for name, values in tokens.items()},
    }
