"""Sweep activation patching over the layers and tokens of the residual stream."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Literal

from prisma_steps.schema import Images, Model, Patching, label
from prisma_steps.seeding import numpy_generator
from prisma_steps.step import Artifact, Field, Job, StepError, StepParams, step

if TYPE_CHECKING:
    import numpy as np
    import torch
    import xarray as xr

    from prisma_steps.models.hooked import HookedViT

#: Factors that the twins of a pair share (Matthey et al. 2017, dSprites).
TWIN_FACTORS = ("scale", "orientation", "position_x", "position_y")


class Params(StepParams):
    """Settings of one patching sweep."""

    direction: Literal["denoising", "noising"] = Field(
        "denoising",
        description="denoising puts the clean residual into the corrupted run; noising the reverse",
    )
    n_pairs: int = Field(64, gt=0, description="pairs of a clean and a corrupted image")
    pairing: Literal["another_class", "twin"] = Field(
        "another_class",
        description="the corrupted image is any image of another class, or one that also has the same scale, "
        "orientation and position (dSprites)",
    )
    only_correct: bool = Field(True, description="use only images that the model classifies correctly")
    seed: int = Field(0, ge=0, description="seed of the choice of pairs")


#: Images classified at once while pairs are looked for.
IMAGES_PER_BLOCK = 256


@step(inputs={"model": Model, "images": Images}, output=Patching)
def patch_activations(model: Artifact, images: xr.Dataset, params: Params, job: Job) -> xr.Dataset:
    """Patch the residual stream before each block, one layer and token at a time.

    The metric is the logit difference of the clean and the corrupted class (Wang et al. 2022,
    arXiv 2211.00593), raw and on the scale where the clean run is 1 and the corrupted run 0.

    Raises:
        StepError: when the images' classes are not the model's, when too few pairs are found, or when the two
            runs of a pair have the same logit difference, so that nothing can be normalised by it.
    """
    from prisma_steps.data.pixels import labels
    from prisma_steps.models.loading import load_model

    _check_classes(model.data, images)
    vit = load_model(model, job.device)
    pairs = _choose_pairs(vit, images, params)
    classes = labels(images)[pairs]
    differences = _sweep(vit, images, pairs, classes, params, job)
    return _labelled(vit, images, pairs, differences, params)


def _check_classes(model: xr.Dataset, images: xr.Dataset) -> None:
    if "class_name" not in images.variables:
        raise StepError("patch_activations: the images have no classes; give the data set of the model")
    if "class_name" not in model.variables:
        raise StepError(
            "patch_activations: the model has no named classes. Give a classifier; load_model names its "
            "classes with class_names."
        )
    known, asked = (data["class_name"].values.tolist() for data in (model, images))
    if known != asked:
        raise StepError(
            f"patch_activations: the images' classes are {asked}, the model was trained on {known}. "
            "Patch the model with images of the data set that it was trained on."
        )


def _choose_pairs(vit: HookedViT, images: xr.Dataset, params: Params) -> np.ndarray:
    """Indices of the images of every pair, [pair, 2]: clean, corrupted."""
    import numpy as np

    from prisma_steps.analysis.patching import pair_up
    from prisma_steps.data.pixels import labels

    candidates = _candidates(vit, images, params)
    found = pair_up(candidates, labels(images).tolist(), _groups(images, params))
    pairs = np.array(list(islice(found, params.n_pairs))).reshape(-1, 2)
    if len(pairs) < params.n_pairs:
        rule = "the same factors and different classes" if params.pairing == "twin" else "different classes"
        among = "that the model classifies correctly" if params.only_correct else "of the data set"
        raise StepError(
            f"patch_activations: n_pairs is {params.n_pairs}, but the {images.sizes['image']} images give "
            f"only {len(pairs)} pairs of {rule} among those {among}. Ask for fewer pairs or give more images."
        )
    return pairs


def _groups(images: xr.Dataset, params: Params) -> list[tuple[float, ...]]:
    """What the two images of a pair must share: for any pair nothing, for twins all factors but the class."""
    if params.pairing == "another_class":
        return [()] * images.sizes["image"]
    missing = [name for name in TWIN_FACTORS if name not in images.coords]
    if missing:
        raise StepError(
            f"patch_activations: pairing 'twin' needs the coordinates {', '.join(TWIN_FACTORS)}; the images "
            f"have no {', '.join(missing)}. Use dSprites, or pairing: another_class."
        )
    return list(zip(*(images[name].values.tolist() for name in TWIN_FACTORS), strict=True))


def _candidates(vit: HookedViT, images: xr.Dataset, params: Params) -> Iterator[int]:
    """Indices of the images that may enter a pair, in a seeded order."""
    import torch

    from prisma_steps.data.pixels import labels, raw_batch

    generator = numpy_generator(params.seed, "patching pairs")
    order = torch.from_numpy(generator.permutation(images.sizes["image"]))
    truth = labels(images)
    for block in order.split(IMAGES_PER_BLOCK):
        if params.only_correct:
            answer = vit(vit.preprocess(raw_batch(images, block.tolist()))).argmax(-1).cpu()
            block = block[answer == truth[block]]
        yield from block.tolist()


def _sweep(
    vit: HookedViT, images: xr.Dataset, pairs: np.ndarray, classes: torch.Tensor, params: Params, job: Job
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Run every cell: the variables of the artifact, with their dims."""
    import torch

    from prisma_steps.analysis.patching import logit_difference, normalise, patch_resid_pre, residual_stream
    from prisma_steps.data.pixels import raw_batch

    classes = classes.to(job.device)
    runs = [residual_stream(vit, vit.preprocess(raw_batch(images, side))) for side in pairs.T.tolist()]
    clean, corrupted = (logit_difference(logits, classes) for logits, _ in runs)
    _check_ends(images, pairs, (clean == corrupted).cpu().numpy())
    source, target = (resid for _, resid in (runs if params.direction == "denoising" else runs[::-1]))
    layers = []
    for layer, differences in enumerate(patch_resid_pre(vit, source, target, classes)):
        layers.append(differences)
        job.progress(layer + 1, vit.n_layers, f"layer {layer}")
    cells = torch.stack(layers, dim=1)
    dims = ("pair", "layer", "token")
    return {
        "logit_difference": (dims, cells.cpu().numpy()),
        "normalised_logit_difference": (dims, normalise(cells, clean, corrupted).cpu().numpy()),
        "clean_logit_difference": (("pair",), clean.cpu().numpy()),
        "corrupted_logit_difference": (("pair",), corrupted.cpu().numpy()),
    }


def _check_ends(images: xr.Dataset, pairs: np.ndarray, equal: np.ndarray) -> None:
    if equal.any():
        clean, corrupted = images["image"].values[pairs[equal.argmax()]]
        raise StepError(
            f"patch_activations: {int(equal.sum())} of {len(pairs)} pairs have the same logit difference in "
            f"the clean and in the corrupted run (the first: {clean} and {corrupted}), so there is nothing "
            "to restore. Are the two images the same? Remove doubles from the images, or set "
            "only_correct: true."
        )


def _labelled(
    vit: HookedViT,
    images: xr.Dataset,
    pairs: np.ndarray,
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]],
    params: Params,
) -> xr.Dataset:
    import numpy as np
    import xarray as xr

    coords = {"pair": np.arange(len(pairs)), "layer": np.arange(vit.n_layers)}
    tokens = vit.token_coords()
    coords["token"] = np.arange(len(tokens["token_kind"]))
    coords |= {name: ("token", values) for name, values in tokens.items()}
    class_name = images["class_name"].values
    for side, indices in zip(("clean", "corrupted"), pairs.T, strict=True):
        coords[f"{side}_image"] = ("pair", images["image"].values[indices])
        coords[f"{side}_class"] = ("pair", class_name[images["label"].values[indices]])
    attrs = {"site": "resid_pre", "direction": params.direction}
    return label(xr.Dataset(variables, coords, attrs))
