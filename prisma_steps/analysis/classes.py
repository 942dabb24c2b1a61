"""Classes of a model by name and number, and whether they are those of images."""

from __future__ import annotations

import difflib

import numpy as np
import xarray as xr
from jaxtyping import Int, Shaped
from torch import Tensor

from prisma_steps.data.pixels import labels
from prisma_steps.models.hooked import HookedViT
from prisma_steps.step import StepError


def require_head(model: HookedViT, of: str) -> None:
    """Refuse a model that gives no logits.

    Raises:
        StepError: in the name of the step ``of``.
    """
    if model.n_classes == 0:
        raise StepError(
            f"{of}: the model has no head, and its classes are what is measured. Put a train_probe node "
            "between the model and this one, or, for a CLIP or SigLIP, set class_names and templates of "
            "load_model"
        )


def labels_for(model: HookedViT, images: xr.Dataset, of: str) -> Int[Tensor, " image"]:
    """The class of every image, as the model numbers them.

    Raises:
        StepError: in the name of the step ``of``, when the model has no head, the images no classes, or
            others than the model.
    """
    require_head(model, of)
    if "label" not in images.variables:
        raise StepError(
            f"{of}: the images have no classes (no `label`), and without them there is no accuracy. A folder "
            "of images gets them from its subfolders: put the images of each class into one"
        )
    shown = None if "class_name" not in images.variables else tuple(images["class_name"].values.tolist())
    if shown is not None and model.class_names is not None and shown != model.class_names:
        raise StepError(
            f"{of}: the images' classes are {_some(shown)}, the model's {_some(model.class_names)}: give "
            "images of the classes that the model tells apart, or train a probe for these (train_probe)"
        )
    found = labels(images)
    if int(found.max()) >= model.n_classes:
        raise StepError(
            f"{of}: an image is of class {int(found.max())}, and the model has only {model.n_classes} "
            "classes, counted from 0"
        )
    return found


def class_names(model: HookedViT, images: xr.Dataset) -> Shaped[np.ndarray, " class"]:
    """A name for every class of the model: its own, else those of as many of the images, else its number."""
    numbers = [str(number) for number in range(model.n_classes)]
    shown = images["class_name"].values.tolist() if "class_name" in images.variables else []
    return np.array(model.class_names or (shown if len(shown) == model.n_classes else numbers))


def class_number(names: Shaped[np.ndarray, " class"], asked: str | int, of: str) -> int:
    """The number of a class, given by that or by its name.

    Raises:
        StepError: in the name of the step ``of``, when there is no such class.
    """
    known = names.tolist()
    if isinstance(asked, int) and asked in range(len(known)):
        return asked
    if asked in known:
        return known.index(asked)
    near = difflib.get_close_matches(str(asked), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise StepError(
        f"{of}: the model has no class {asked!r}.{hint} Its classes are numbered 0 to {len(known) - 1} and "
        f"named {_some(tuple(known))}"
    )


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(map(str, names[:4]))
    return f"{shown}, … ({len(names)})" if len(names) > 4 else shown
