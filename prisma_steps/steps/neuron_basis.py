"""Step ``neuron_basis``: the neurons of a site as a dictionary, to compare latents with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prisma_steps.job import Job
from prisma_steps.schema import Activations, Dictionary, label
from prisma_steps.step import Field, SiteName, StepParams, step

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from prisma_steps.sae.stored import StoredTokens


class Params(StepParams):
    """Which neurons, and how many of them a token may have."""

    site: SiteName | None = Field(
        None, description="site whose coordinates are the neurons; needed only where several are stored"
    )
    layer: int | Literal["last"] = Field("last", description="block of the site, or the last one stored")
    tokens: Literal["all", "cls", "patch"] = Field("all", description="tokens to compare on")
    sign: Literal["positive", "both"] = Field(
        "both",
        description="positive: a neuron is a latent where it is above the centre; both: where it is below, "
        "it is another one",
    )
    centre: Literal["zeros", "mean"] = Field(
        "mean", description="what neurons are measured from, and put back to where they are not kept"
    )
    k: int | None = Field(None, gt=0, description="neurons kept a token, the largest; null keeps all")


@step(inputs={"activations": Activations}, output=Dictionary)
def neuron_basis(activations: xr.Dataset, params: Params, job: Job) -> xr.Dataset:
    """Take the neurons of a site for latents: a dictionary of single coordinates that nothing has trained.

    ``evaluate_sae``, ``encode_latents`` and ``rank_images`` take it as any other, under the architecture
    "neurons". At the ``k`` that is a dictionary's L0, its FVU and CE recovered are what latents have to beat.

    Raises:
        StepError: when the activations do not hold the site, layer or tokens asked for, or k exceeds the
            number of latents.
    """
    import torch

    from prisma_steps.sae.labelled import dictionary_dataset
    from prisma_steps.sae.neurons import neuron_basis as basis
    from prisma_steps.sae.selection import stored_layers, stored_site
    from prisma_steps.sae.stored import StoredTokens
    from prisma_steps.sae.tokens import only_kind

    site = stored_site(activations, params.site, "site")
    values = stored_layers(activations[site], params.layer)
    stored = StoredTokens([values], params.tokens)
    width = values.sizes[str(values.dims[-1])]
    centre = _mean(stored, width, job) if params.centre == "mean" else torch.zeros(width)
    place = {"layer": int(values["layer"])} if "layer" in values.coords else {}
    trained_on = {"site": site, **place, "tokens": only_kind(values, params.tokens)}
    return label(dictionary_dataset(basis(centre, params.sign, params.k), {}, trained_on))


def _mean(stored: StoredTokens, width: int, job: Job) -> Tensor:
    """The mean token, in float64, block by block."""
    import torch

    total = torch.zeros(width, dtype=torch.float64)
    for start in range(0, stored.n_images, stored.section_images):
        where = slice(start, min(start + stored.section_images, stored.n_images))
        (table,) = tables = stored.room((where.stop - where.start) * stored.tokens_per_image)
        stored.read(where, tables)
        total += table.double().sum(0)
        job.progress(where.stop, stored.n_images, "images")
    return (total / len(stored)).float()
