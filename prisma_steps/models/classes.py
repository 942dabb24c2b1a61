"""Which logit of a model the class of an image is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Int
from torch import Tensor

from prisma_steps.data.pixels import labels
from prisma_steps.step import StepError

if TYPE_CHECKING:
    import xarray as xr

    from prisma_steps.models.structure import Structure


def require_classes(model: Structure, of: str) -> None:
    """Refuse a model without a head.

    Raises:
        StepError: in the name of the step ``of``.
    """
    if model.n_classes == 0:
        raise StepError(
            f"{of}: the model has no classes, and logits need a head. Put a train_probe node between the "
            "model and this one, or, for a CLIP or SigLIP, set class_names and templates of load_model"
        )


def labels_of(model: Structure, images: xr.Dataset, of: str, otherwise: str) -> Int[Tensor, " image"]:
    """The class of every image, as a number of the model's logits.

    Args:
        model: with a head.
        images: with the coordinate ``label``.
        of: the step that asks.
        otherwise: what its user can do where the images have other classes than the model.

    Raises:
        StepError: when images have no classes, or others than the model.
    """
    found = labels(images)
    named = images["class_name"].values.tolist() if "class_name" in images.variables else None
    known = None if model.class_names is None else list(model.class_names)
    beyond = int(found.max()) >= model.n_classes
    if beyond or (named is not None and known is not None and named != known):
        raise StepError(
            f"{of}: the images' classes are {_shown(named)}, the model's {_shown(known)} "
            f"({model.n_classes}): give images of the classes that the model tells apart, or {otherwise}"
        )
    return found


def _shown(names: list[str] | None) -> str:
    """The first names."""
    if names is None:
        return "without names"
    return ", ".join(names[:5]) + (f", … ({len(names)})" if len(names) > 5 else "")
