"""Step ``patch_activations``: activations of one run put into another, site by site and layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator, model_validator

from prisma_steps.job import Job
from prisma_steps.precision import ComputeDtype
from prisma_steps.schema import Images, Model, Pairs, Patching, label
from prisma_steps.step import Artifact, Field, SiteName, StepError, StepParams, step

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from prisma_steps.analysis.patching import Sweep
    from prisma_steps.models.hooked import HookedViT

#: Sites that are patched token by token, and sites that are patched head by head.
OF_TOKENS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
OF_HEADS = ("q", "k", "v", "z", "pattern")

#: What is measured of every run.
METRICS = ("logit_difference", "probability", "ce", "kl")


class Params(StepParams):
    """Settings of one patching sweep."""

    site: SiteName | list[SiteName] = Field(
        "resid_pre",
        description=f"what is patched: of {', '.join(OF_TOKENS)} one layer and token at a time, of "
        f"{', '.join(OF_HEADS)} one layer and head; a list of sites is a dimension of the result",
    )
    each_token: bool = Field(
        False,
        description="of heads: patch one token at a time (of pattern the one that attends), not all at once",
    )
    direction: Literal["denoising", "noising"] = Field(
        "denoising",
        description="denoising puts the clean run's activations into the corrupted run; noising the reverse",
    )
    layers: Literal["all"] | list[int] = Field("all", description="layers that are patched")
    tokens: Literal["all"] | list[int] = Field(
        "all", description="tokens that are patched, where tokens are patched one at a time"
    )
    together: Literal["nothing", "frame", "frames_so_far"] = Field(
        "nothing",
        description="of clips, tokens that are patched together: those of one frame, or of a frame and all "
        "before it; tokens that lie in no frame (CLS) are frame -1",
        json_schema_extra={"as_before": True},
    )
    compute_dtype: ComputeDtype = Field(
        "float32",
        description="bfloat16 is about four times as fast on a CPU that multiplies in it, and its effects "
        "are off by 0.2 to 0.7 of their spread (root mean square; CLIP-B/32 with random weights)",
    )
    memory_mb: int = Field(
        128,
        gt=0,
        description="memory for the runs that are computed together, in MiB, beside the model and the result",
        json_schema_extra={"not_in_key": True},
    )

    @property
    def sites(self) -> list[str]:
        """The sites, one or several."""
        return [self.site] if isinstance(self.site, str) else self.site

    @field_validator("layers", "tokens")
    @classmethod
    def _some(cls, chosen: Any) -> Any:
        if chosen != "all" and (not chosen or min(chosen) < 0 or len(set(chosen)) < len(chosen)):
            raise ValueError(f"numbers from 0, each named once, at least one; got {chosen}")
        return chosen

    @model_validator(mode="after")
    def _sites_of_one_sort(self) -> Params:
        of_tokens = [site for site in self.sites if site in OF_TOKENS]
        of_heads = [site for site in self.sites if site in OF_HEADS]
        strange = [site for site in self.sites if site not in (*OF_TOKENS, *OF_HEADS)]
        if strange or not self.sites:
            raise ValueError(
                f"site: {strange[0] if strange else 'none'} is not patched; sites are "
                f"{', '.join((*OF_TOKENS, *OF_HEADS))}"
            )
        if len(set(self.sites)) < len(self.sites):
            raise ValueError("site: each may be named once")
        if of_tokens and of_heads:
            raise ValueError(
                f"site: {of_tokens[0]} is patched by token, {of_heads[0]} by head: make two nodes"
            )
        if of_tokens and self.each_token:
            raise ValueError(
                f"each_token is for heads; {of_tokens[0]} is patched token by token: leave it out"
            )
        if of_heads and not self.each_token and self.tokens != "all":
            raise ValueError("tokens of heads are chosen with each_token: true")
        if self.together != "nothing" and (of_heads or self.tokens != "all"):
            raise ValueError(f"together: {self.together} patches all tokens of sites of the stream")
        return self


@step(inputs={"model": Model, "images": Images, "pairs": Pairs}, output=Patching)
def patch_activations(
    model: Artifact, images: xr.Dataset, pairs: xr.Dataset, params: Params, job: Job
) -> xr.Dataset:
    """Patch one site of one layer at a time, at one token or head, from one run of a pair into the other.

    Wang et al. 2022, arXiv 2211.00593, section 3. Every cell is one run of the rest of the model.

    Returns:
        Along pair, (site,) layer, and token or head or both, or patch_frame: the logit difference of the
        clean and the corrupted class, the probability of the clean class, CE with it in nat, and KL(clean
        run ‖ patched run) in nat. Each also ``normalised_…``, on the scale where the pair's clean run is 1
        and its corrupted run 0; NaN where the two have the same value, so that there is nothing to restore.
        And along pair each of the clean and the corrupted run as they are.

    Raises:
        StepError: before the first forward pass: for a site, layer or token that the model does not have, a
            class that it does not have, pairs of other images, or of an image with itself.
    """
    from prisma_steps.data.pairs import check_pairs, classes_of
    from prisma_steps.memory import reused_memory
    from prisma_steps.models.loading import load_model

    vit = load_model(model, job.device)
    sweep = _sweep(vit, params)
    check_pairs(images, pairs)
    classes = classes_of(pairs, vit.class_names)
    with reused_memory():
        found = _run(vit.for_inference(params.compute_dtype), images, pairs, classes, sweep, params, job)
    return label(_labelled(vit, pairs, found, sweep, params))


def _sweep(vit: HookedViT, params: Params) -> Sweep:
    """The cells.

    Raises:
        StepError: for what the model does not have.
    """
    from prisma_steps.analysis.patching import Sweep
    from prisma_steps.models.sites import SiteError

    layers = list(range(vit.n_layers)) if params.layers == "all" else params.layers
    n_tokens = len(vit.token_coords()["token_kind"])
    tokens = list(range(n_tokens)) if params.tokens == "all" else params.tokens
    try:
        vit.site_keys(params.sites, layers)
    except SiteError as error:
        raise StepError(f"patch_activations: {error}") from error
    if max(tokens) >= n_tokens:
        raise StepError(
            f"patch_activations: no token {max(tokens)}: the model has tokens 0 to {n_tokens - 1}"
        )
    groups = list(_frames(vit, params).values())
    return Sweep(params.sites, layers, tokens, params.each_token, params.memory_mb * 2**20, groups)


def _frames(vit: HookedViT, params: Params) -> dict[int, list[int]]:
    """The tokens that are patched together, by frame; nothing where none are.

    Raises:
        StepError: for a model of still images.
    """
    import numpy as np

    if params.together == "nothing":
        return {}
    frame = vit.token_coords().get("patch_frame")
    if frame is None:
        raise StepError(
            f"patch_activations: together: {params.together} is for clips, and the model takes still images. "
            "Leave it out, or give a model of clips."
        )
    together = np.less_equal if params.together == "frames_so_far" else np.equal
    return {int(number): np.flatnonzero(together(frame, number)).tolist() for number in np.unique(frame)}


def _run(
    vit: HookedViT,
    images: xr.Dataset,
    pairs: xr.Dataset,
    classes: Any,
    sweep: Sweep,
    params: Params,
    job: Job,
) -> dict[str, np.ndarray]:
    """Metrics of every cell [pair, site, layer, *cell], and of both runs [pair], by name."""
    import numpy as np

    from prisma_steps.analysis.patching import pairs_per_block

    count = len(classes)
    size = pairs_per_block(vit, len(vit.token_coords()["token_kind"]), sweep)
    blocks = []
    for first in range(0, count, size):
        where = slice(first, min(first + size, count))

        def report(layer: int, done: int = first, here: int = where.stop - first) -> None:
            steps = done * vit.n_layers + here * (layer + 1)
            job.progress(steps, count * vit.n_layers, f"pairs {done} to {done + here - 1}, layer {layer}")

        blocks.append(_of_block(vit, images, pairs, classes.to(vit.device), where, sweep, params, report))
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _of_block(
    vit: HookedViT,
    images: xr.Dataset,
    pairs: xr.Dataset,
    classes: Any,
    where: slice,
    sweep: Sweep,
    params: Params,
    report: Any,
) -> dict[str, np.ndarray]:
    """As ``_run``, of some pairs."""
    import torch

    from prisma_steps.analysis.metrics import Metrics, normalised
    from prisma_steps.analysis.patching import patch
    from prisma_steps.data.pairs import prepared_sides

    clean, corrupted = prepared_sides(images, pairs, where, vit.preprocess)
    with torch.no_grad():
        logits = [vit(side) for side in (clean, corrupted)]
    metrics = Metrics(classes[where], logits[0])
    each = torch.arange(len(clean), device=vit.device)
    ends = [metrics(side, each) for side in logits]
    cells: dict[str, dict[tuple[str, int], torch.Tensor]] = {name: {} for name in METRICS}
    source, target = (clean, corrupted) if params.direction == "denoising" else (corrupted, clean)
    for layer, site, values in patch(vit, source, target, metrics, sweep):
        for name, value in values.items():
            cells[name][site, layer] = value
        report(layer)
    found = {
        name: torch.stack(
            [torch.stack([of[site, layer] for layer in sweep.layers], 1) for site in sweep.sites], 1
        )
        for name, of in cells.items()
    }
    scaled = {f"normalised_{name}": value for name, value in normalised(found, *ends).items()}
    sides = {
        f"{side}_{name}": value
        for side, values in zip(("clean", "corrupted"), ends, strict=True)
        for name, value in values.items()
    }
    return {name: value.cpu().numpy() for name, value in {**found, **scaled, **sides}.items()}


def _labelled(
    vit: HookedViT, pairs: xr.Dataset, found: dict[str, np.ndarray], sweep: Sweep, params: Params
) -> xr.Dataset:
    """The metrics with their labels; without ``site`` where one is named alone."""
    import numpy as np
    import xarray as xr

    by_head, frames = params.sites[0] in OF_HEADS, list(_frames(vit, params))
    by_token = not frames and (not by_head or params.each_token)
    cells = ("head",) * by_head + ("token",) * by_token + ("patch_frame",) * bool(frames)
    coords: dict[str, Any] = {"layer": sweep.layers, "site": sweep.sites}
    if frames:
        coords["patch_frame"] = frames
    if by_head:
        coords["head"] = np.arange(vit.n_heads)
    if by_token:
        coords["token"] = sweep.tokens
        coords |= {name: ("token", value[sweep.tokens]) for name, value in vit.token_coords().items()}
    variables = {
        name: (("pair", "site", "layer", *cells) if values.ndim > 1 else ("pair",), values)
        for name, values in found.items()
    }
    of_pairs = {name: coord for name, coord in pairs.coords.items() if coord.dims == ("pair",)}
    attrs = {"site": params.site, "direction": params.direction, "compute_dtype": params.compute_dtype}
    if frames:
        attrs["together"] = params.together
    data = xr.Dataset(variables, {**of_pairs, **coords}, attrs)
    return data.isel(site=0, drop=True) if isinstance(params.site, str) else data
