"""Step ``encode_latents``: the latents of a data set, of which few fire on each token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prisma_steps.job import Job
from prisma_steps.schema import Activations, Codes, Dictionary, label
from prisma_steps.step import Blocks, Field, StepError, StepParams, step

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from prisma_steps.sae.autoencoder import Autoencoder
    from prisma_steps.sae.codes import Spool
    from prisma_steps.sae.stored import StoredTokens

#: Activations read, and entries written, at once; of one image at least.
BLOCK_BYTES = 2**25


class Params(StepParams):
    """Which images to encode."""

    n_images: int | None = Field(None, gt=0, description="the first images only; all of them if left out")


@step(inputs={"activations": Activations, "sae": Dictionary}, output=Codes)
def encode_latents(activations: xr.Dataset, sae: xr.Dataset, params: Params, job: Job) -> Blocks:
    """Encode stored activations: which latents fire on which tokens of an image, and how strongly.

    The tokens are those that the dictionary was trained on. How long the longest list of an image is, is
    known only at the end: entries go into a file of the job's own first, and from there into blocks. Memory
    does not grow with the images, but for 8 bytes of each; that file takes 12 bytes an entry while the job
    lasts.

    Returns:
        Along image and entry, ``entry_token`` (a place along token), ``entry_latent`` and ``activation``, in
        the order of tokens and then of latents; the rest of a row is padding (−1, −1, 0). ``n_active`` along
        image and token is each token's L0. ``sae.codes.dense_latents`` makes chosen latents dense.

    Raises:
        StepError: when the activations do not hold what the dictionary reads, or hold values that are not
            finite, or when there are fewer images than asked for.
    """
    from prisma_steps.sae.codes import ENTRY_BYTES, Spool
    from prisma_steps.sae.labelled import load_dictionary
    from prisma_steps.sae.selection import input_of
    from prisma_steps.sae.stored import StoredTokens

    values = input_of(activations, sae)
    n_images = values.sizes["image"] if params.n_images is None else params.n_images
    if n_images > values.sizes["image"]:
        raise StepError(
            f"encode_latents: n_images is {n_images:,}, but there are only {values.sizes['image']:,} images"
        )
    values = values.isel(image=slice(n_images))
    stored = StoredTokens([values], sae.attrs["tokens"])
    autoencoder = load_dictionary(sae, job.device)
    at_once = _images_at_once(stored, autoencoder)
    spool = Spool(job.scratch / "codes", n_images, stored.tokens_per_image, at_once)
    _fill(spool, stored, autoencoder, values["image"].values, job)
    width = max(1, int(spool.per_image.max()))
    size = max(1, BLOCK_BYTES // (ENTRY_BYTES * width))
    return Blocks(label(_template(values, sae, width)), size, lambda where: spool.read(where, width))


def _fill(spool: Spool, stored: StoredTokens, sae: Autoencoder, ids: np.ndarray, job: Job) -> None:
    """Encode the images that are not in the spool yet, block by block.

    Raises:
        StepError: naming an image whose activations are not finite.
    """
    import torch

    from prisma_steps.sae.codes import Entries, blocks_of_images

    for where in blocks_of_images(stored.n_images, spool.block, spool.done):
        n_images = where.stop - where.start
        (table,) = tables = stored.room(n_images * stored.tokens_per_image)
        stored.read(where, tables)
        x = table.flatten(1).to(job.device, torch.float32).unflatten(0, (n_images, -1))
        unfit = (~x.isfinite()).flatten(1).any(1)
        if unfit.any():
            name = str(ids[where.start + int(unfit.nonzero()[0])])
            raise StepError(f"encode_latents: the activations of image {name!r} are not finite")
        latents = sae.encode(x)
        places = (latents > 0).nonzero(as_tuple=True)
        image, token, latent = (place.cpu().numpy() for place in places)
        spool.add(Entries(image, token, latent, latents[places].cpu().numpy()))
        job.progress(where.stop, stored.n_images, "images")


def _images_at_once(stored: StoredTokens, sae: Autoencoder) -> int:
    """Images whose activations and latents are in memory together; the same whenever a job goes on."""
    from prisma_steps.sae.evaluation import LATENT_BYTES

    of_latents = 4 * stored.tokens_per_image * sae.shape.n_latents
    of_activations = 4 * stored.tokens_per_image * sae.shape.d_in
    return max(1, min(LATENT_BYTES // of_latents, BLOCK_BYTES // of_activations))


def _template(values: xr.DataArray, sae: xr.Dataset, width: int) -> xr.Dataset:
    import dask.array as da
    import numpy as np
    import xarray as xr

    from prisma_steps.sae.codes import VARIABLES
    from prisma_steps.sae.place import labels_of
    from prisma_steps.sae.tokens import chosen_tokens

    chosen = np.flatnonzero(chosen_tokens(values["token_kind"].values, sae.attrs["tokens"]))
    shape = (values.sizes["image"], width)
    types = {"token": "int32", "latent": "int32", "activation": "float32"}
    data = {
        name: (("image", "entry"), da.zeros(shape, dtype=types[field])) for field, name in VARIABLES.items()
    }
    counts = {"n_active": (("image", "token"), da.zeros((shape[0], len(chosen)), dtype="int32"))}
    carried = {}
    for name, coord in values.coords.items():
        if coord.dims in (("image",), ("token",)):
            kept = coord.values[chosen] if coord.dims == ("token",) else coord.values
            carried[name] = (coord.dims, kept)
    coords = {**carried, "entry": np.arange(width), "n_latents": sae.sizes["latent"], **labels_of(sae)}
    return xr.Dataset({**data, **counts}, coords, attrs=sae.attrs)
