"""Step ``follow_latents``: the activation of latents from frame to frame of clips."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from prisma_steps.job import Job
from prisma_steps.schema import Codes, Images, TimeCourses, label
from prisma_steps.step import Field, StepError, StepParams, step

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

#: Dense activations that are in memory at once.
DENSE = 2**24


class Params(StepParams):
    """Which latents to follow."""

    latents: Literal["most_active"] | list[int] = Field(
        "most_active", description="a list of them, or those of the highest summed activation on patch tokens"
    )
    n_latents: int = Field(
        8,
        gt=0,
        description="latents to follow, where they are not listed",
        json_schema_extra={"only_for": {"latents": ["most_active"]}},
    )

    @field_validator("latents")
    @classmethod
    def _each_once(cls, asked: Any) -> Any:
        if isinstance(asked, list) and (not asked or len(set(asked)) < len(asked)):
            raise ValueError(f"name at least one, each once; got {asked}")
        return asked


@step(inputs={"codes": Codes, "images": Images}, output=TimeCourses)
def follow_latents(codes: xr.Dataset, images: xr.Dataset, params: Params, job: Job) -> xr.Dataset:
    """Follow latents through the frames of clips: their activation on the patches of every tubelet.

    Returns:
        Along latent, image and patch_frame, ``highest_in_frame`` and ``mean_in_frame`` over the patches of
        the frame (0 where the latent does not fire). What is known of the clips (label, velocity, …) is
        carried along image.

    Raises:
        StepError: when the codes are not of clips, have no patch tokens, or are of clips that are not among
            the images; for a latent that the dictionary does not have; when fewer latents fire than asked.
    """
    import xarray as xr

    frames = _frames(codes)
    known = _known(codes, images)
    latents = _latents(codes, params)
    per_image = codes.sizes["token"] * len(latents)
    size, n_images = max(1, DENSE // per_image), codes.sizes["image"]
    parts = []
    for first in range(0, n_images, size):
        parts.append(_courses(codes.isel(image=slice(first, first + size)), frames, latents))
        job.progress(min(first + size, n_images), n_images, "images")
    joined = xr.concat(parts, "image").transpose("latent", "image", "patch_frame")
    place = {name: coord for name, coord in codes.coords.items() if coord.ndim == 0}
    return label(joined.assign_coords({**known, **place}))


def _frames(codes: xr.Dataset) -> np.ndarray:
    """The tubelet of every token, −1 of one that is no patch."""
    import numpy as np

    if "patch_frame" not in codes.coords:
        raise StepError(
            "follow_latents: the codes have no patch_frame: they are of still images, or of the CLS token "
            "alone. Give codes of patches of clips"
        )
    frames = np.where(codes["token_kind"].values == "patch", codes["patch_frame"].values, -1)
    if (frames < 0).all():
        raise StepError("follow_latents: none of the tokens is a patch: give codes of patches of clips")
    return frames.astype(int)


def _known(codes: xr.Dataset, images: xr.Dataset) -> dict[str, Any]:
    """What is known of the clips, along image, and the names of their classes."""
    ids = codes["image"].values
    strange = ids[~codes.get_index("image").isin(images.get_index("image"))]
    if len(strange):
        raise StepError(
            f"follow_latents: the codes are of {str(strange[0])!r}, which is not among the images"
        )
    of_clips = images.coords.to_dataset().sel(image=ids).compute()
    kept = {name: coord for name, coord in of_clips.coords.items() if coord.dims in (("image",), ("class",))}
    return {str(name): (coord.dims, coord.values, coord.attrs) for name, coord in kept.items()}


def _latents(codes: xr.Dataset, params: Params) -> list[int]:
    """Numbers of the latents to follow; of equal activation the lower number comes first."""
    import numpy as np

    if params.latents != "most_active":
        return params.latents
    total = np.zeros(int(codes["n_latents"]))
    is_patch = codes["token_kind"].values == "patch"
    per_block = max(1, DENSE // codes.sizes["entry"])
    for first in range(0, codes.sizes["image"], per_block):
        block = codes.isel(image=slice(first, first + per_block))
        token, latent, activation = (
            block[name].values for name in ("entry_token", "entry_latent", "activation")
        )
        counts = (latent >= 0) & is_patch[token]
        np.add.at(total, latent[counts], activation[counts].astype(float))
    firing = int((total > 0).sum())
    if firing < params.n_latents:
        raise StepError(
            f"follow_latents: n_latents is {params.n_latents}, but only {firing} latents fire on patches of "
            "these clips: lower it, or list latents"
        )
    return np.argsort(-total, kind="stable")[: params.n_latents].tolist()


def _courses(codes: xr.Dataset, frames: np.ndarray, latents: list[int]) -> xr.Dataset:
    """Highest and mean activation in every tubelet, of some images."""
    import numpy as np
    import xarray as xr

    from prisma_steps.sae.codes import dense_latents

    dense = dense_latents(codes, latents).transpose("image", "token", "latent").values
    numbers = np.unique(frames[frames >= 0])
    highest, mean = (
        np.stack([getattr(dense[:, frames == number], how)(1) for number in numbers])
        for how in ("max", "mean")
    )
    dims = ("patch_frame", "image", "latent")
    return xr.Dataset(
        {"highest_in_frame": (dims, highest), "mean_in_frame": (dims, mean)},
        {"patch_frame": numbers, "image": codes["image"].values, "latent": latents},
    )
