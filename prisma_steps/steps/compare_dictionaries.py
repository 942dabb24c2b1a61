"""Step ``compare_dictionaries``: which latents of one dictionary another has too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prisma_steps.job import Job
from prisma_steps.schema import Dictionary, Similarity, label
from prisma_steps.step import Field, StepError, StepParams, step

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from torch import Tensor

    from prisma_steps.sae.similarity import Nearest


class Params(StepParams):
    """Settings of the comparison."""

    threshold: float = Field(0.7, gt=-1, lt=1, description="cosine above which a latent counts as matched")
    cells: int = Field(
        256, gt=0, le=2048, description="side of the map, at most: larger dictionaries share cells"
    )


@step(inputs={"first": Dictionary, "second": Dictionary}, output=Similarity)
def compare_dictionaries(first: xr.Dataset, second: xr.Dataset, params: Params, job: Job) -> xr.Dataset:
    """Compare two dictionaries by the cosines of their decoder rows: of seeds, layers or architectures.

    A latent is matched when some row of the other is nearer than ``threshold`` (Sharkey et al. 2022 and
    Paulo & Belrose 2025, arXiv 2501.16615, on dictionaries of several seeds). A dictionary compared with
    itself is compared with its other rows. All latents count, the dead too.

    Returns:
        Of the latents of each side, the highest cosine to a row of the other, the latent that has it, the
        place in the order of the map, and the share that is matched. ``cosine_map`` holds the highest cosine
        of every cell: mutual nearest neighbours stand on the diagonal, from the closest on; a dictionary with
        itself is in an order in which alike latents follow one another.

    Raises:
        StepError: when the decoders write spaces of different widths, or there is only one latent.
    """
    import torch

    from prisma_steps.sae.similarity import (
        chained_order,
        cosine_map,
        directions,
        matched_order,
        nearest,
    )

    rows, others = (directions(_decoder(sae)) for sae in (first, second))
    if rows.shape[1] != others.shape[1]:
        raise StepError(
            f"compare_dictionaries: decoder rows of first have {rows.shape[1]} coordinates, those of second "
            f"{others.shape[1]}: compare dictionaries that write spaces of one width"
        )
    itself = torch.equal(rows, others)
    if itself and len(rows) < 2:
        raise StepError("compare_dictionaries: a dictionary of one latent has no others to compare it with")
    of_first, of_second = nearest(rows, others, itself)
    if itself:
        order = chained_order(rows)
        orders = order, order
    else:
        orders = matched_order(of_first, of_second)
    down, across = (side[torch.from_numpy(order)] for side, order in zip((rows, others), orders, strict=True))
    cells = cosine_map(down, across, params.cells, itself)
    job.progress(1, 1)
    return label(_labelled((of_first, of_second), orders, cells, itself, params))


def _decoder(sae: xr.Dataset) -> Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.array(sae["W_dec"].transpose("latent", ...).values))


def _labelled(
    found: tuple[Nearest, Nearest],
    orders: tuple[np.ndarray, np.ndarray],
    cells: np.ndarray,
    itself: bool,
    params: Params,
) -> xr.Dataset:
    import numpy as np
    import xarray as xr

    data: dict[str, Any] = {"cosine_map": (("first_cell", "second_cell"), cells)}
    coords: dict[str, Any] = {}
    for side, of_side, order in zip(("first", "second"), found, orders, strict=True):
        dim = f"{side}_latent"
        data[f"{side}_max_cosine"] = (dim, of_side.cosine)
        data[f"{side}_nearest"] = (dim, of_side.latent)
        data[f"{side}_place"] = (dim, np.argsort(order))
        data[f"{side}_matched_share"] = float((of_side.cosine > params.threshold).mean())
        coords[dim] = np.arange(len(order))
    coords |= {
        f"{side}_cell": np.arange(size) for side, size in zip(("first", "second"), cells.shape, strict=True)
    }
    return xr.Dataset(data, coords, {"threshold": params.threshold, "itself": int(itself)})
