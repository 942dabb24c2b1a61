"""Step ``rank_images``: the images in which each latent fires most strongly, and where in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from prisma_steps.job import Job
from prisma_steps.schema import Codes as CodesKind
from prisma_steps.schema import Ranking, label
from prisma_steps.step import Field, StepError, StepParams, step

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import numpy as np
    import xarray as xr

    from prisma_steps.sae.ranking import Chosen, Codes


class Params(StepParams):
    """Which images to keep, of which latents."""

    latents: Literal["all"] | int | list[int] = Field(
        "all",
        description="all latents, a list of them, or so many of those that fire, drawn at random. Heat maps "
        "take 4 bytes for each latent, token and image that is kept",
    )
    top: int = Field(16, gt=0, description="images of each latent, from the one that fires it most strongly")
    quantiles: list[float] = Field(
        [0.9, 0.75, 0.5, 0.25],
        description="one more image each: at this quantile of the latent's activation over the images in "
        "which it fires",
    )
    seed: int = Field(0, ge=0, description="seed of the draw, where latents is a number")

    @field_validator("latents")
    @classmethod
    def _some(cls, latents: Any) -> Any:
        listed = isinstance(latents, list)
        if latents == [] or (isinstance(latents, int) and latents < 1):
            raise ValueError("no latents: name at least one")
        if listed and len(set(latents)) < len(latents):
            raise ValueError(f"each latent may be named once, got {latents}")
        return latents

    @field_validator("quantiles")
    @classmethod
    def _shares(cls, quantiles: list[float]) -> list[float]:
        if not all(0 < share <= 1 for share in quantiles) or len(set(quantiles)) < len(quantiles):
            raise ValueError(f"quantiles are shares above 0, up to 1, each once, got {quantiles}")
        return quantiles


@step(inputs={"codes": CodesKind}, output=Ranking)
def rank_images(codes: xr.Dataset, params: Params, job: Job) -> xr.Dataset:
    """Rank the images of a data set by how strongly each latent fires in them.

    The score of an image is the latent's highest activation over its tokens; images of equal score are in
    the order of the data. Codes are read block by block, once for the counts, once for every 16 million
    scores, and once for the heat maps: what is in memory at once depends on the latents that are kept, not on
    the images. Blocks are tasks of dask, which runs them in the job's threads, or on the cluster whose
    scheduler ``DASK_SCHEDULER_ADDRESS`` names (its workers read the same store).

    Returns:
        Along latent and rank, ``top_image`` (an id, empty where a latent fires in fewer images),
        ``top_activation`` and, along token too, ``top_heat_map``; along latent and quantile the same of the
        image at that quantile. ``firing_frequency_per_image`` along latent.

    Raises:
        StepError: for a latent that the dictionary does not have.
    """
    from prisma_steps.sae.ranking import Codes, choose, groups

    with _cluster():
        blocks = Codes(codes)
        counts = blocks.images_firing()
        latents = _latents(counts, params)
        tops, at_quantiles = [], []
        for some in groups(latents, counts[latents]):
            chosen = choose(blocks.scores(some), some, params.top, params.quantiles)
            tops.append(chosen[0])
            at_quantiles.append(chosen[1])
            job.progress(sum(len(top.image) for top in tops), len(latents), "latents")
        found = {"top": ("rank", _joined(tops)), "quantile": ("quantile", _joined(at_quantiles))}
        data: dict[str, Any] = {"firing_frequency_per_image": ("latent", counts[latents] / blocks.n_images)}
        for name, (dim, chosen) in found.items():
            data |= _described(name, dim, chosen, latents, blocks, codes["image"].values)
    return label(_labelled(data, codes, latents, params))


def _cluster() -> AbstractContextManager[Any]:
    """A connection to the scheduler that the environment names, if it names one."""
    from contextlib import nullcontext

    import dask.config

    address = dask.config.get("scheduler-address", None)
    if address is None:
        return nullcontext()
    from distributed import Client

    return Client(address)


def _latents(counts: np.ndarray, params: Params) -> np.ndarray:
    """Numbers of the latents to rank images for.

    Raises:
        StepError: for one that the dictionary does not have.
    """
    import numpy as np

    from prisma_steps.seeding import numpy_generator

    if params.latents == "all":
        return np.arange(len(counts))
    if isinstance(params.latents, int):
        firing = np.flatnonzero(counts)
        drawn = numpy_generator(params.seed, "rank_images/latents").permutation(firing)
        return np.sort(drawn[: params.latents])
    strange = [number for number in params.latents if not 0 <= number < len(counts)]
    if strange:
        raise StepError(
            f"rank_images: no latent {strange[0]}: the dictionary has latents 0 to {len(counts) - 1}"
        )
    return np.array(params.latents)


def _joined(parts: list[Chosen]) -> Chosen:
    import numpy as np

    from prisma_steps.sae.ranking import Chosen

    return Chosen(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _described(
    name: str, dim: str, chosen: Chosen, latents: np.ndarray, blocks: Codes, ids: np.ndarray
) -> dict[str, Any]:
    """Ids, scores and heat maps of the images chosen for each latent."""
    import numpy as np

    there = chosen.image >= 0
    maps = np.full((*there.shape, blocks.n_tokens), np.nan, np.float32)
    of_latent = np.broadcast_to(latents[:, None], there.shape)[there]
    maps[there] = blocks.heat_maps(of_latent, chosen.image[there])
    names = np.full(there.shape, "", object)
    names[there] = ids.astype(object)[chosen.image[there]]
    return {
        f"{name}_image": (("latent", dim), names),
        f"{name}_activation": (("latent", dim), chosen.score),
        f"{name}_heat_map": (("latent", dim, "token"), maps),
    }


def _labelled(data: dict[str, Any], codes: xr.Dataset, latents: np.ndarray, params: Params) -> xr.Dataset:
    import numpy as np
    import xarray as xr

    kept = {name: coord for name, coord in codes.coords.items() if coord.dims in ((), ("token",))}
    coords = {"latent": latents, "rank": np.arange(params.top), "quantile": np.array(params.quantiles)}
    return xr.Dataset(data, {**kept, **coords}, codes.attrs)
