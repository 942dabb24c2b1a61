"""Where a model can be read and written: keys of sites, their names in other toolkits, hooks on them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from torch import Tensor

from prisma_steps.schema import SITE_DIMS

#: A site and its block, counted from 0; the block is None for a site that exists once.
SiteKey: TypeAlias = tuple[str, int | None]

#: What replaces the value at a site. A function that returns its argument only reads.
Tap: TypeAlias = Callable[[Tensor], Tensor]
Hooks: TypeAlias = Mapping[SiteKey, Tap]

#: The place of every site in a forward pass, block by block: a value is read after earlier writes to it.
ORDER: Mapping[str, int] = {site: place for place, site in enumerate(SITE_DIMS)}


class SiteError(ValueError):
    """A site or a layer that the model does not have."""


def check_keys(keys: Iterable[SiteKey], sites: Mapping[str, bool], n_layers: int) -> None:
    """Refuse keys that name nothing in a model.

    Args:
        keys: what is to be read or written.
        sites: the sites that the model has, and whether each exists once a layer.
        n_layers: the model's number of blocks.

    Raises:
        SiteError: naming the site or layer that is not there, and those that are.
    """
    for site, layer in keys:
        check_site(site, sites)
        if not sites[site] and layer is not None:
            raise SiteError(
                f"site {site!r} exists once: its key is ({site!r}, None), not ({site!r}, {layer})"
            )
        if sites[site] and layer not in range(n_layers):
            raise SiteError(f"no layer {layer!r} at site {site!r}: the model has layers 0 to {n_layers - 1}")


def check_site(site: str, sites: Iterable[str], reason: str = "") -> None:
    """Refuse a site that is not among those that a model has.

    Args:
        site: what is asked for.
        sites: what there is.
        reason: why the model has no such site, where that is known.

    Raises:
        SiteError: naming the nearest site and all that there are.
    """
    known = list(sites)
    if site not in known:
        near = difflib.get_close_matches(site, known, n=1)
        hint = f" {reason}." if reason else f" Did you mean {near[0]!r}?" if near else ""
        raise SiteError(f"the model has no site {site!r}.{hint} Its sites: {', '.join(known)}")


def checked(tap: Tap, key: SiteKey) -> Tap:
    """``tap``, which must keep the shape.

    Raises:
        ValueError: from the returned function, when it does not.
    """

    def write(value: Tensor) -> Tensor:
        written = tap(value)
        if written.shape != value.shape:
            site, layer = key
            where = site if layer is None else f"{site} of layer {layer}"
            raise ValueError(
                f"hook at {where} returned {tuple(written.shape)}, expected {tuple(value.shape)}"
            )
        return written

    return write
