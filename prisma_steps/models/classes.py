"""Which logit of a model the class of an image is."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Int
from torch import Tensor

from prisma_steps.data.pixels import labels
from prisma_steps.step import StepError

if TYPE_CHECKING:
    import xarray as xr

    from prisma_steps.models.structure import Structure


def require_classes(model: Structure, of: str, otherwise: str = "") -> None:
    """Refuse a model without a head.

    Args:
        model: any.
        of: the step that asks.
        otherwise: what else its user can do.

    Raises:
        StepError: in the name of the step ``of``.
    """
    if model.n_classes == 0:
        raise StepError(
            f"{of}: the model has no classes, and logits need a head. Put a train_probe node between the "
            "model and this one, or, for a CLIP or SigLIP, set class_names and templates of load_model"
            + (f", or {otherwise}" if otherwise else "")
        )


def labels_of(
    model: Structure, images: xr.Dataset, of: str, otherwise: str, same_names: bool = True
) -> Int[Tensor, " image"]:
    """The class of every image, as a number of the model's logits.

    Args:
        model: with a head.
        images: with the coordinate ``label``.
        of: the step that asks.
        otherwise: what its user can do where the images have other classes than the model.
        same_names: whether classes of other names are other classes.

    Raises:
        StepError: when images have no classes, or others than the model.
    """
    found = labels(images)
    named = images["class_name"].values.tolist() if "class_name" in images.variables else None
    known = None if model.class_names is None else list(model.class_names)
    count = max(images.sizes.get("class", 0), int(found.max()) + 1)
    if count > model.n_classes or (same_names and None not in (named, known) and named != known):
        raise StepError(
            f"{of}: the images are of {count} classes ({_shown(named)}), the model tells {model.n_classes} "
            f"apart ({_shown(known)}): give images of the model's classes, or {otherwise}"
        )
    return found


def _shown(names: list[str] | None) -> str:
    """The first names."""
    if names is None:
        return "without names"
    return ", ".join(names[:5]) + (f", … ({len(names)})" if len(names) > 5 else "")


def class_names(model: Structure, images: xr.Dataset) -> list[str]:
    """A name for every class of the model: its own, else those of as many of the images, else its number."""
    shown = images["class_name"].values.tolist() if "class_name" in images.variables else []
    numbers = [str(number) for number in range(model.n_classes)]
    return list(model.class_names or (shown if len(shown) == model.n_classes else numbers))


def number_of_class(names: Sequence[str], asked: int | str, of: str) -> int:
    """A class by its name, or by its number among the logits.

    Raises:
        StepError: when there is no such class, in the name of the step ``of``.
    """
    if isinstance(asked, int):
        if asked in range(len(names)):
            return asked
        raise StepError(f"{of}: no class {asked}: the model has classes 0 to {len(names) - 1}")
    if asked in names:
        return names.index(asked)
    near = difflib.get_close_matches(asked, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise StepError(f"{of}: no class {asked!r}.{hint} The model's classes are {_shown(list(names))}")
