"""Read a model's activations on images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from prisma_steps.job import Job
from prisma_steps.parts import images_of_part
from prisma_steps.schema import SITE_DIMS, Activations, Images, Model, label
from prisma_steps.step import Artifact, Blocks, Field, InParts, SiteName, StepError, step

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from prisma_steps.models.hooked import HookedViT

#: Activations made at once, at least one batch.
BLOCK_BYTES = 2**26


class Params(InParts):
    """What to read of which images."""

    sites: list[SiteName] = Field(min_length=1, description="sites to read: " + ", ".join(SITE_DIMS))
    layers: Literal["all", "last"] | list[int] = Field(
        "all", description="blocks to read, counted from 0; sites that exist once are read once"
    )
    tokens: Literal["all", "cls", "patch"] = Field(
        "all", description="tokens to keep; query_token and key_token are kept whole"
    )
    n_images: int | None = Field(None, gt=0, description="the first images only; null takes all")
    storage_dtype: Literal["float32", "float16"] = Field(
        "float32", description="float16 takes half the space and refuses values beyond its range"
    )
    compute_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="of weights and activations in the forward pass; bfloat16 is faster and has 3 digits",
        json_schema_extra={"as_before": True},
    )
    batch_size: int = Field(
        256,
        gt=0,
        description="images that go through the model at once",
        json_schema_extra={"not_in_key": True},
    )

    @field_validator("sites", "layers")
    @classmethod
    def _each_once(cls, asked: str | list[Any]) -> str | list[Any]:
        if not asked:
            raise ValueError("the list is empty: name at least one")
        if isinstance(asked, list) and len(set(asked)) < len(asked):
            raise ValueError(f"each may be named once, got {asked}")
        return asked


@step(inputs={"model": Model, "images": Images}, output=Activations)
def extract_activations(model: Artifact, images: xr.Dataset, params: Params, job: Job) -> Blocks:
    """Read a model's activations on images.

    One variable a site, with the dims of ``schema.SITE_DIMS`` and ``layer`` after ``image`` where the site
    exists in every block. ``token`` is the position in the model's sequence, CLS being 0.

    Raises:
        StepError: when the model lacks a site or a layer, when images or sites do not fit, when there are
            fewer images than asked for or than parts, or when a value is not finite or too large for its
            storage.
    """
    import numpy as np
    import xarray as xr

    from prisma_steps.memory import reused_memory
    from prisma_steps.models.loading import load_model

    vit = load_model(model, job.device).for_inference(params.compute_dtype)
    layers = _layers(vit, params)
    chosen = images_of_part(_first(images, vit, params), params)
    template, count = _template(vit, chosen, layers, params), chosen.sizes["image"]

    def make(where: slice) -> xr.Dataset:
        block = range(count)[where]
        shapes = {site: (len(block), *template[site].shape[1:]) for site in params.sites}
        values = {site: np.empty(shape, params.storage_dtype) for site, shape in shapes.items()}
        with reused_memory():
            for at in range(0, len(block), params.batch_size):
                batch = block[at : at + params.batch_size]
                for site, value in _read_batch(vit, chosen, batch, layers, params).items():
                    values[site][at : at + len(batch)] = value
                job.progress(batch.stop, count, "images")
        data = {site: (template[site].dims, value) for site, value in values.items()}
        return xr.Dataset(data, {"image": template["image"].values[where]})

    return Blocks(label(template), _block_size(template, params), make)


def _layers(vit: HookedViT, params: Params) -> list[int]:
    """Numbers of the blocks to read, once sites and layers are known to exist."""
    from prisma_steps.models.sites import SiteError

    named = {"all": range(vit.n_layers), "last": [vit.n_layers - 1]}
    layers = list(named[params.layers] if isinstance(params.layers, str) else params.layers)
    try:
        vit.site_keys(params.sites, layers)
    except SiteError as error:
        raise StepError(f"extract_activations: {error}") from error
    return layers


def _first(images: xr.Dataset, vit: HookedViT, params: Params) -> xr.Dataset:
    """The images to read, once they are known to fit the model."""
    count = images.sizes["image"]
    if params.n_images is not None and params.n_images > count:
        raise StepError(
            f"extract_activations: n_images is {params.n_images:,}, but there are only {count:,} images"
        )
    vit.check_images(images["pixels"].shape[1:])
    return images.isel(image=slice(params.n_images))


def _read_batch(
    vit: HookedViT, images: xr.Dataset, where: range, layers: list[int], params: Params
) -> dict[str, np.ndarray]:
    import torch

    from prisma_steps.data.pixels import raw_batch
    from prisma_steps.models.reading import UnfitValueError, read

    pixels = vit.preprocess(raw_batch(images, slice(where.start, where.stop)))
    dtype = getattr(torch, params.storage_dtype)
    try:
        values = read(vit, pixels, params.sites, layers, params.tokens, dtype)
    except UnfitValueError as error:
        name = str(images["image"].values[where.start + error.image])
        raise StepError(f"extract_activations: image {name!r}: {error}") from error
    return {site: value.numpy() for site, value in values.items()}


def _template(vit: HookedViT, images: xr.Dataset, layers: list[int], params: Params) -> xr.Dataset:
    import dask.array as da
    import xarray as xr

    axes = _axes(vit, images, layers, params)
    widths = {"d_model": vit.d_model, "d_head": vit.d_head, "d_mlp": vit.d_mlp}
    sizes = {**{dim: len(values) for dim, values in axes.items()}, **widths}
    dims = {site: _dims(vit, site) for site in params.sites}
    used = {dim for site in dims for dim in dims[site]}
    zeros = {
        site: (names, da.zeros([sizes[dim] for dim in names], dtype=params.storage_dtype))
        for site, names in dims.items()
    }
    coords = {dim: values for dim, values in axes.items() if dim in used}
    return xr.Dataset(zeros, coords).assign_coords(_carried(vit, images, axes["token"], used))


def _dims(vit: HookedViT, site: str) -> tuple[str, ...]:
    image, *rest = SITE_DIMS[site]
    return (image, "layer", *rest) if vit.sites[site] else (image, *rest)


def _axes(vit: HookedViT, images: xr.Dataset, layers: list[int], params: Params) -> dict[str, np.ndarray]:
    """The coordinate of every dim that has one."""
    import numpy as np

    sequence = np.arange(len(vit.token_coords()["token_kind"]))
    return {
        "image": images["image"].values,
        "layer": np.array(layers),
        "token": _tokens(vit, params),
        "head": np.arange(vit.n_heads),
        "query_token": sequence,
        "key_token": sequence,
        "class": np.arange(vit.n_classes),
    }


def _tokens(vit: HookedViT, params: Params) -> np.ndarray:
    """Positions in the model's sequence of the tokens kept, which must be the same at every site."""
    import numpy as np

    from prisma_steps.models.reading import kept_tokens
    from prisma_steps.models.sites import SiteError

    with_tokens = [site for site in params.sites if "token" in SITE_DIMS[site]]
    try:
        by_site = {site: kept_tokens(vit, site, params.tokens) for site in with_tokens}
    except SiteError as error:
        raise StepError(f"extract_activations: {error}") from error
    most = max(by_site.values(), key=len, default=np.arange(0))
    for site, kept in by_site.items():
        if len(kept) == 0 or not np.array_equal(kept, most):
            lacking = "CLS token" if site == "embed" else "tokens but CLS" if len(kept) else "such token"
            raise StepError(
                f"extract_activations: site {site!r} has no {lacking}, and tokens is {params.tokens!r}. Set "
                f"tokens to what all sites have, or read {site!r} in a node of its own."
            )
    return most


def _carried(vit: HookedViT, images: xr.Dataset, tokens: np.ndarray, used: set[str]) -> dict[str, Any]:
    """What is known of every image, token and class."""
    import numpy as np

    from prisma_steps.models.cache import along_image

    known = along_image(images).items()
    carried: dict[str, Any] = {str(name): ("image", coord.values) for name, coord in known if name != "image"}
    if "token" in used:
        carried.update((name, ("token", values[tokens])) for name, values in vit.token_coords().items())
    elif "key_token" in used:
        carried.update((name, ("key_token", values)) for name, values in vit.token_coords().items())
    names, counted = _class_names(vit, images, "class" in used)
    if not counted:
        carried.pop("label", None)
    if names is not None and ("class" in used or "label" in carried):
        carried["class_name"] = ("class", np.array(names))
    return carried


def _class_names(vit: HookedViT, images: xr.Dataset, of_logits: bool) -> tuple[list[str] | None, bool]:
    """Names along ``class``, and whether labels of images are numbers of these classes.

    Logits are of the model's classes, which can be others than those of the images.
    """
    shown = images["class_name"].values.tolist() if "class_name" in images.coords else None
    fits = shown is not None and len(shown) == vit.n_classes and vit.class_names in (None, tuple(shown))
    if not of_logits or fits:
        return shown, True
    return None if vit.class_names is None else list(vit.class_names), False


def _block_size(template: xr.Dataset, params: Params) -> int:
    """Images in a block: whole batches, as many as ``BLOCK_BYTES`` holds."""
    per_image = sum(values.nbytes for values in template.data_vars.values()) // template.sizes["image"]
    return max(BLOCK_BYTES // (per_image * params.batch_size), 1) * params.batch_size
