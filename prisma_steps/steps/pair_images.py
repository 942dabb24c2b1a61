"""Step ``pair_images``: clean images and their corrupted counterparts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import field_validator, model_validator

from prisma_steps.job import Job
from prisma_steps.schema import IMAGE_DIMS, Images, Model, Pairs, label
from prisma_steps.seeding import numpy_generator
from prisma_steps.step import Artifact, Field, OutsideFolder, StepError, StepParams, step

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from prisma_steps.data.corruptions import Corruption
    from prisma_steps.models.hooked import HookedViT

#: Images classified at once while pairs are looked for.
IMAGES_PER_BLOCK = 256

_OF_PATCHES = ["gaussian_noise", "masked_patches"]
_DRAWN = ["another_class", "twin", "mean_image", *_OF_PATCHES]


def _only_for(*pairings: str) -> dict[str, Any]:
    """Mark of a parameter that only some pairings have."""
    return {"only_for": {"pairing": list(pairings)}}


class Params(StepParams):
    """What makes an image's corrupted counterpart."""

    pairing: Literal["another_class", "twin", "gaussian_noise", "masked_patches", "mean_image", "csv"] = (
        Field(
            "another_class",
            description="the corrupted image: any of another class; a twin that differs in one factor "
            "(dSprites); the same image with noise or with patches masked; the mean of all images; or what a "
            "file says",
        )
    )
    n_pairs: int = Field(
        64,
        gt=0,
        description="pairs of a clean and a corrupted image; of a file all its pairs are taken",
        json_schema_extra=_only_for(*_DRAWN),
    )
    only_correct: bool = Field(
        True, description="use only images (and twins) that the model classifies correctly"
    )
    factor: Literal["shape", "scale", "orientation", "position_x", "position_y"] = Field(
        "shape",
        description="the factor in which twins differ",
        json_schema_extra=_only_for("twin"),
    )
    sigma: float = Field(
        50.0,
        gt=0,
        description="standard deviation of the noise, of pixels from 0 to 255",
        json_schema_extra=_only_for("gaussian_noise"),
    )
    patches: float | list[int] | None = Field(
        None,
        description="where noise or mask is: a share of the patches, drawn for each image, or a list of "
        "patches, counted from 0 row by row; null puts noise on the whole image",
        json_schema_extra=_only_for(*_OF_PATCHES),
    )
    fill: Literal["mean"] | int = Field(
        "mean",
        description="what masked patches show: a grey level from 0 to 255, or each channel's mean",
        json_schema_extra=_only_for("masked_patches"),
    )
    path: OutsideFolder | None = Field(
        None,
        description="a folder with pairs.csv, whose columns are clean and corrupted (ids of images) and, if "
        "wanted, clean_class and corrupted_class (names)",
        json_schema_extra=_only_for("csv"),
    )
    seed: int = Field(
        0,
        ge=0,
        description="seed of the choice of images, noise, patches and twins",
        json_schema_extra=_only_for(*_DRAWN),
    )

    @field_validator("patches")
    @classmethod
    def _some(cls, patches: Any) -> Any:
        if isinstance(patches, float | int) and not 0 < patches <= 1:
            raise ValueError(f"a share of the patches is above 0, up to 1, got {patches}")
        if isinstance(patches, list) and (
            not patches or min(patches) < 0 or len(set(patches)) < len(patches)
        ):
            raise ValueError(f"patches are counted from 0, each named once, at least one; got {patches}")
        return patches

    @field_validator("fill")
    @classmethod
    def _grey_level(cls, fill: Any) -> Any:
        if isinstance(fill, int) and not 0 <= fill <= 255:
            raise ValueError(f"a grey level is from 0 to 255, got {fill}")
        return fill

    @model_validator(mode="after")
    def _what_the_pairing_needs(self) -> Params:
        if self.pairing == "masked_patches" and self.patches is None:
            raise ValueError("pairing: masked_patches needs `patches`, a share or a list of patches")
        if (self.pairing == "csv") != (self.path is not None):
            raise ValueError("pairing: csv needs `path`, the folder of pairs.csv; others have none")
        return self


@step(inputs={"model": Model, "images": Images}, output=Pairs)
def pair_images(model: Artifact, images: xr.Dataset, params: Params, job: Job) -> xr.Dataset:
    """Pair clean images with corrupted counterparts, for interventions in one run by means of the other.

    Images are taken in an order that the seed shuffles. What is drawn for one (noise, patches, a twin)
    depends on the seed and on its id alone. An image that its corruption leaves as it was makes no pair.

    Returns:
        Along ``pair`` the ids and the names of the classes of both sides. The class of a corrupted image is
        its own where that is another than the clean one's, else the one that the model finds likeliest in it
        among all but the clean one's. ``corrupted_pixels`` (0 to 255), where they are of no image of the
        data set.

    Raises:
        StepError: when the images' classes are none of the model's, when too few pairs are found, when the
            images do not fit the pairing, or when a file's pairs are not of two of the images.
    """
    from prisma_steps.data.pairs import classes_in_model
    from prisma_steps.models.loading import load_model

    vit = load_model(model, job.device)
    choice = _Choice(vit, images, classes_in_model(images, vit.class_names), params, job)
    if params.pairing == "csv":
        found = _listed(choice)
    elif params.pairing == "another_class":
        found = _of_two_classes(choice)
    else:
        found = _with_corrupted(choice)
    return label(_labelled(choice, found))


class _Pairs(NamedTuple):
    """Pairs that were found: all along ``pair``.

    Attributes:
        clean: indices of the clean images.
        corrupted: ids of the corrupted images.
        classes: numbers of the clean and the corrupted class.
        pixels: of the corrupted images, where they are none of the data set.
    """

    clean: np.ndarray
    corrupted: np.ndarray
    classes: np.ndarray
    pixels: np.ndarray | None = None


@dataclass(frozen=True)
class _Choice:
    """What pairs are chosen from.

    Attributes:
        truth: number of the model's class of each image.
    """

    vit: HookedViT
    images: xr.Dataset
    truth: np.ndarray
    params: Params
    job: Job

    def logits(self, raw: np.ndarray) -> np.ndarray:
        """What the model answers to images from 0 to 255, [image, class]."""
        import torch

        with torch.no_grad():
            return self.vit(self.vit.preprocess(torch.from_numpy(raw))).float().cpu().numpy()

    def raw(self, index: np.ndarray) -> np.ndarray:
        """The images as they are stored."""
        from prisma_steps.data.pixels import raw_batch

        return raw_batch(self.images, index).numpy()

    def candidates(self) -> Iterator[np.ndarray]:
        """Indices of the images that may be in a pair, a block at a time, in a seeded order."""
        import numpy as np

        count = self.images.sizes["image"]
        order = numpy_generator(self.params.seed, "patching pairs").permutation(count)
        for first in range(0, count, IMAGES_PER_BLOCK):
            block = order[first : first + IMAGES_PER_BLOCK]
            if self.params.only_correct:
                answer = np.argmax(self.logits(self.raw(block)), axis=1)
                block = block[answer == self.truth[block]]
            yield block

    def enough(self, found: int) -> None:
        """Refuse too few pairs.

        Raises:
            StepError: saying how many there are.
        """
        if found < self.params.n_pairs:
            correct = " that the model classifies correctly" if self.params.only_correct else ""
            raise StepError(
                f"pair_images: n_pairs is {self.params.n_pairs}, but the {self.images.sizes['image']} images "
                f"give only {found} pairs (pairing: {self.params.pairing}, of images{correct}). Ask for "
                "fewer pairs or give more images."
            )


def _of_two_classes(choice: _Choice) -> _Pairs:
    import numpy as np

    from prisma_steps.data.pairing import pair_up

    images = (int(image) for block in choice.candidates() for image in block)
    pairs = np.array(list(islice(pair_up(images, choice.truth.tolist()), choice.params.n_pairs)), dtype=int)
    choice.enough(len(pairs))
    _check_pixels(choice, pairs)
    ids = choice.images["image"].values
    return _Pairs(pairs[:, 0], ids[pairs[:, 1]], choice.truth[pairs])


def _check_pixels(choice: _Choice, pairs: np.ndarray) -> None:
    """Refuse pairs [pair, side] of images that look the same."""
    for first in range(0, len(pairs), IMAGES_PER_BLOCK):
        block = pairs[first : first + IMAGES_PER_BLOCK]
        clean, corrupted = (choice.raw(side) for side in block.T)
        same = (clean == corrupted).reshape(len(block), -1).all(1)
        if same.any():
            names = choice.images["image"].values[block[same.argmax()]]
            raise StepError(
                f"pair_images: the images {names[0]} and {names[1]} have the same pixels, so that nothing is "
                "corrupted. Remove doubles from the images, or leave the pair out."
            )


def _listed(choice: _Choice) -> _Pairs:
    """The pairs of a file; with ``only_correct`` those whose images the model classifies correctly."""
    import numpy as np

    from prisma_steps.data.pairing import IDS, chosen_classes, listed_pairs, places

    rows = listed_pairs(Path(str(choice.params.path)))
    ids = choice.images["image"].values
    pairs = places(rows, ids.tolist())
    _check_pixels(choice, pairs)
    chosen = chosen_classes(rows, choice.vit.class_names or ())
    classes = np.where(chosen < 0, choice.truth[pairs], chosen)
    logits = [
        np.concatenate(
            [
                choice.logits(choice.raw(part))
                for part in np.array_split(side, -(-len(side) // IMAGES_PER_BLOCK))
            ]
        )
        for side in pairs.T
    ]
    classes[:, 1] = _other(classes[:, 0], classes[:, 1], logits[1])
    correct = np.stack([side.argmax(1) for side in logits], axis=1) == choice.truth[pairs]
    kept = correct.all(1) | (not choice.params.only_correct)
    if not kept.any():
        raise StepError(
            f"pair_images: of none of the {len(pairs)} pairs listed does the model classify both images "
            f"({' and '.join(IDS)}) correctly. Set only_correct: false to use them all the same."
        )
    return _Pairs(pairs[kept, 0], ids[pairs[kept, 1]], classes[kept])


def _other(clean: np.ndarray, own: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """A class for each corrupted image that is not the clean one: its own, else the likeliest one."""
    import numpy as np

    without = logits.copy()
    without[np.arange(len(clean)), clean] = -np.inf
    return np.where(own != clean, own, without.argmax(1))


def _with_corrupted(choice: _Choice) -> _Pairs:
    """Images of the data set with corrupted ones that are made of them."""
    import numpy as np

    corruption = _corruption(choice)
    found: list[_Pairs] = []
    for block in choice.candidates():
        if sum(len(some.clean) for some in found) >= choice.params.n_pairs:
            break
        clean = choice.raw(block)
        made = corruption(clean, block)
        own = choice.truth[block]
        logits = choice.logits(made.pixels) if len(block) else np.zeros((0, 2))
        if made.class_names is not None:
            own = np.array([list(choice.vit.class_names or ()).index(name) for name in made.class_names], int)
        kept = (clean != made.pixels).reshape(len(block), -1).any(1)
        if choice.params.pairing == "twin" and choice.params.only_correct:
            kept &= logits.argmax(1) == own
        classes = np.stack([choice.truth[block], _other(choice.truth[block], own, logits)], axis=1)
        found.append(_Pairs(block[kept], made.ids[kept], classes[kept], made.pixels[kept]))
    pairs = _Pairs(*(np.concatenate(values)[: choice.params.n_pairs] for values in zip(*found, strict=True)))
    choice.enough(len(pairs.clean))
    return pairs


def _corruption(choice: _Choice) -> Corruption:
    """What makes corrupted images.

    Raises:
        StepError: when the images do not fit it.
    """
    from prisma_steps.data.corruptions import MeanImage, OnPatches, Twin

    params, images = choice.params, choice.images
    if params.pairing == "twin":
        return Twin(images, params.factor, params.seed)
    if params.pairing == "mean_image":
        return MeanImage(images)
    coords = choice.vit.token_coords()
    grid = (int(coords["patch_row"].max()) + 1, int(coords["patch_col"].max()) + 1)
    size = (images.sizes["row"], images.sizes["column"])
    if params.patches is not None and size != choice.vit.input_shape[-2:]:
        raise StepError(
            f"pair_images: the images have {size[0]} × {size[1]} pixels, the model takes "
            f"{' × '.join(map(str, choice.vit.input_shape[-2:]))}, so that its patches are no patches of the "
            "images. Load the images in that size, or leave `patches` out."
        )
    if isinstance(params.patches, list) and max(params.patches) >= grid[0] * grid[1]:
        raise StepError(
            f"pair_images: there is no patch {max(params.patches)}: the model has {grid[0]} × {grid[1]}, "
            f"numbered 0 to {grid[0] * grid[1] - 1}"
        )
    noise = params.sigma if params.pairing == "gaussian_noise" else None
    fill = None if params.fill == "mean" else params.fill
    return OnPatches(images["image"].values, params.patches, grid, noise, fill, params.seed)


def _labelled(choice: _Choice, found: _Pairs) -> xr.Dataset:
    import numpy as np
    import xarray as xr

    images, names = choice.images, np.array(choice.vit.class_names)
    data: dict[str, Any] = {
        "clean_image": ("pair", images["image"].values[found.clean]),
        "corrupted_image": ("pair", found.corrupted),
        "clean_class": ("pair", names[found.classes[:, 0]]),
        "corrupted_class": ("pair", names[found.classes[:, 1]]),
        "pair": np.arange(len(found.clean)),
    }
    pixels = {}
    if found.pixels is not None:
        dims = [dim for dim in IMAGE_DIMS if dim in images["pixels"].dims]
        pixels["corrupted_pixels"] = (("pair", *dims), found.pixels)
        data |= {dim: images[dim].values for dim in dims if dim in images.coords}
    return xr.Dataset(pixels, data, {"pairing": choice.params.pairing})
