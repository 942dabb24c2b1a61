"""A dictionary with what its file says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from prisma_steps.sae.autoencoder import Autoencoder
from prisma_steps.sae.formats.files import FormatError
from prisma_steps.sae.labelled import dictionary_dataset, load_dictionary
from prisma_steps.schema import SITE_DIMS, SITES_WITHOUT_LAYER, TRANSFORMER_LENS_SITES, site_key

#: What says where in a model a dictionary belongs. ``target_layer`` is there only where it is not ``layer``.
PLACE = ("site", "layer", "target_site", "target_layer", "tokens")


@dataclass(frozen=True)
class Published:
    """A dictionary on its way in or out.

    Attributes:
        autoencoder: the dictionary, in float32.
        place: of ``PLACE`` what is known.
        facts: what else is known, as attributes: ``model_name``, and ``sparsity_setting`` where the file does
            not say how the dictionary was made sparse.
    """

    autoencoder: Autoencoder
    place: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)


def from_dataset(data: xr.Dataset) -> Published:
    """A dictionary as a step left it.

    Raises:
        FormatError: for data of several, or of something else.
    """
    try:
        autoencoder = load_dictionary(data)
    except (KeyError, ValueError) as error:
        raise FormatError(
            f"these data are not those of one dictionary ({error}). A grid of them keeps no settings that "
            "differ: give the node, as experiment/node, and select one"
        ) from error
    facts = {name: data.attrs[name] for name in ("model_name",) if name in data.attrs}
    place = {name: data.attrs[name] for name in PLACE if name in data.attrs}
    return Published(autoencoder, place, facts)


def as_dataset(published: Published) -> xr.Dataset:
    """A dictionary as a step leaves it, without a history.

    Raises:
        FormatError: when it is not known where it belongs.
    """
    place = {"tokens": "all", **published.place}
    once = place.get("site") in SITES_WITHOUT_LAYER
    transcodes = published.autoencoder.shape.kind == "transcoder"
    needed = ["site", *([] if once else ["layer"]), *(["target_site"] if transcodes else [])]
    lacking = [name for name in needed if name not in place]
    if lacking:
        raise FormatError(f"the files do not say where the dictionary belongs: set {', '.join(lacking)}")
    return dictionary_dataset(published.autoencoder, {}, place).assign_attrs(**published.facts)


def place_of(hook: str | None, target: str | None, tokens: str | None) -> dict[str, Any]:
    """The place that TransformerLens's names of sites tell; a name that is not known tells nothing.

    Args:
        hook: where the dictionary reads.
        target: where a transcoder writes.
        tokens: which tokens it was trained on, where that is known.
    """
    site, layer = _known_site(hook)
    target_site, target_layer = _known_site(target)
    found = {"site": site, "layer": layer, "target_site": target_site, "tokens": tokens}
    if target_layer != layer:
        found["target_layer"] = target_layer
    return {name: value for name, value in found.items() if value is not None}


def _known_site(hook: str | None) -> tuple[str | None, int | None]:
    site, layer = site_key(str(hook))
    whole = site in SITE_DIMS and (layer is None) == (site in SITES_WITHOUT_LAYER)
    return (site, layer) if whole else (None, None)


def hook_name(site: str, layer: int | None) -> str:
    """The name that TransformerLens and ViT-Prisma have for a site.

    Raises:
        FormatError: when they have none.
    """
    names = [name for name, short in TRANSFORMER_LENS_SITES.items() if short == site]
    if not names:
        raise FormatError(f"site {site!r} has no name in TransformerLens")
    return names[0] if layer is None or site in SITES_WITHOUT_LAYER else f"blocks.{layer}.{names[0]}"


def hooks_of(place: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Where a dictionary reads and, if it is a transcoder, writes, by the names of TransformerLens."""
    layer = place.get("layer")
    target_layer = place.get("target_layer", layer)
    return (
        hook_name(place["site"], layer) if "site" in place else None,
        hook_name(place["target_site"], target_layer) if "target_site" in place else None,
    )


def folded(autoencoder: Autoencoder) -> dict[str, Tensor]:
    """Weights that take activations of the model as they are: norm factors are folded into them.

    With n the factor of the inputs and t that of the outputs (n itself, of an autoencoder),
    f = act((n x − b) W_enc + b_enc) and y = (f W_dec + b) / t become those of n W_enc, W_dec / t and b / t:
    latents stay as they are. Normalisation token by token stays: no weight can do it. Multiplied in float64.

    Raises:
        FormatError: for a crosscoder, which no other toolkit has.
    """
    if autoencoder.shape.kind == "crosscoder":
        raise FormatError("a crosscoder reads several layers: the formats of other toolkits have none")
    norm = autoencoder.normalisation
    by_factor = norm.normalise in ("none", "expected_norm")
    read = norm.norm_factor[0].double() if by_factor else torch.ones(())
    written = norm.target_norm_factor.double() if norm.transcodes else read
    factors = {"W_enc": read, "W_dec": 1 / written, "b_dec": 1 / written, "W_skip": read / written}
    state = {name: tensor.detach().cpu() for name, tensor in autoencoder.state_dict().items()}
    return {
        name: (tensor.double() * factors[name].cpu()).float().contiguous() if name in factors else tensor
        for name, tensor in state.items()
        if "." not in name
    }
