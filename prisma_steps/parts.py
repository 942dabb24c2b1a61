"""The images of a step's work, or of one part of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prisma_steps.step import InParts, StepError

if TYPE_CHECKING:
    import xarray as xr


def first_images(images: xr.Dataset, n_images: int | None, of: str) -> xr.Dataset:
    """The first ``n_images`` images; all of them if None.

    Raises:
        StepError: when there are fewer, in the name of the step ``of``.
    """
    count = images.sizes["image"]
    if n_images is not None and n_images > count:
        raise StepError(f"{of}: n_images is {n_images:,}, but there are only {count:,} images: lower it")
    return images.isel(image=slice(n_images))


def places_of(images: xr.Dataset, asked: Sequence[int | str], parameter: str, of: str) -> list[int]:
    """Places of images that are named by their places or their ids.

    Args:
        images: all of them.
        asked: which.
        parameter: what names them.
        of: the step that asks.

    Raises:
        StepError: for one that is not there, and for one that is named by its place and by its id.
    """
    ids = {name: place for place, name in enumerate(images["image"].values.tolist())}
    places: list[int] = []
    for one in asked:
        place = one if isinstance(one, int) else ids.get(one, -1)
        if place not in range(len(ids)):
            raise StepError(
                f"{of}: no image {one!r}. `{parameter}` holds places from 0 to {len(ids) - 1}, or ids such "
                f"as {next(iter(ids))!r}"
            )
        if place in places:
            raise StepError(f"{of}: {one!r} is an image that `{parameter}` names already")
        places.append(place)
    return places


def images_of_part(images: xr.Dataset, params: InParts) -> xr.Dataset:
    """The images, or what else lies along ``image``, of the part that ``params`` names.

    Raises:
        StepError: when there are more parts than images.
    """
    return images.isel(image=part_slice(images.sizes["image"], params.parts, params.part))


def part_slice(count: int, parts: int, part: int) -> slice:
    """Part ``part`` of ``count`` things in ``parts`` parts, whose sizes differ by one at most.

    Raises:
        StepError: when there are more parts than things.
    """
    if parts > count:
        raise StepError(
            f"parts is {parts:,}, but there are only {count:,} images: set parts to {count} or less"
        )
    return slice(part * count // parts, (part + 1) * count // parts)
