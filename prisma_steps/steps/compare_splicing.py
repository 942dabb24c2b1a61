"""Step ``compare_splicing``: what changes in a model when a dictionary's reconstruction is spliced in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from prisma_steps.job import Job
from prisma_steps.parts import places_of
from prisma_steps.schema import Dictionary, Images, Model, Splicing, label
from prisma_steps.step import Artifact, Field, StepError, StepParams, step

if TYPE_CHECKING:
    import numpy as np
    import torch
    import xarray as xr

    from prisma_steps.analysis.splicing import Comparison
    from prisma_steps.models.hooked import HookedViT
    from prisma_steps.models.splicing import Splice


class Params(StepParams):
    """Which images, and whose attention."""

    chosen_images: list[int | str] = Field(
        [0], min_length=1, description="a few images, by their places among the images or by their ids"
    )
    attention_layer: int | None = Field(
        None,
        ge=0,
        description="block whose CLS attention is compared; null takes the first that reads what the "
        "dictionary writes, if there is one",
    )

    @field_validator("chosen_images")
    @classmethod
    def _each_once(cls, asked: list[int | str]) -> list[int | str]:
        if len(set(asked)) < len(asked):
            raise ValueError(f"name each image once; got {asked}")
        return asked


@step(inputs={"sae": Dictionary, "model": Model, "images": Images}, output=Splicing)
def compare_splicing(
    sae: xr.Dataset, model: Artifact, images: xr.Dataset, params: Params, job: Job
) -> xr.Dataset:
    """Compare a model's run on a few images with those in which a dictionary is spliced in.

    Returns:
        Along image and token, the norms of what is at the written site (``value_norm``), of the
        reconstruction and of the error, in the model's own space; NaN at tokens that the dictionary was not
        trained on. Along run (clean, reconstruction, error_term), ``logit`` and ``probability`` of every
        class and, of a model with a CLS token, ``cls_attention`` along head and key_token, in the block
        ``attention_layer`` (an attribute). The run ``error_term`` is the clean one, to rounding.

    Raises:
        StepError: for a dictionary that is a crosscoder or of another model; for an image that is not there;
            for a block that does not exist, or whose attention the dictionary cannot change; for a model
            without a head.
    """
    from prisma_steps.analysis.splicing import compare_runs
    from prisma_steps.analysis.steering import check_splice, steered_tokens
    from prisma_steps.data.pixels import raw_batch
    from prisma_steps.models.classes import class_names, require_classes
    from prisma_steps.models.loading import load_model
    from prisma_steps.sae.place import labels_of
    from prisma_steps.sae.placed import as_splice

    vit, splice = load_model(model, job.device), as_splice(sae, job.device)
    require_classes(vit, "compare_splicing")
    check_splice(vit, splice)
    names = class_names(vit, images)
    images = images.isel(image=places_of(images, params.chosen_images, "chosen_images", "compare_splicing"))
    layer = _attention_layer(vit, splice, params)
    tokens = steered_tokens(vit, splice, "all").in_site
    found = compare_runs(vit, splice, vit.preprocess(raw_batch(images, slice(None))), tokens, layer)
    job.progress(1, 1)
    data = _labelled(found, *_along_token(vit, splice, tokens), images, names, layer)
    return label(data.assign_coords(labels_of(sae)))


def _attention_layer(vit: HookedViT, splice: Splice, params: Params) -> int | None:
    """The block whose attention is compared."""
    from prisma_steps.analysis.splicing import comes_before_attention

    reading = [layer for layer in range(vit.n_layers) if comes_before_attention(splice, layer)]
    has_cls = vit.token_coords()["token_kind"][0] == "cls"
    asked = params.attention_layer
    if asked is None:
        return reading[0] if reading and has_cls else None
    if not has_cls:
        raise StepError("compare_splicing: the model has no CLS token: leave attention_layer out")
    if asked not in reading:
        after = ", ".join(map(str, reading)) or "none"
        raise StepError(
            f"compare_splicing: attention_layer is {asked}; the blocks whose attention reads what the "
            f"dictionary of {splice.writes[0]} writes are: {after}"
        )
    return asked


def _along_token(vit: HookedViT, splice: Splice, tokens: torch.Tensor) -> tuple[dict[str, Any], np.ndarray]:
    """Kind and place of every token of the model, and which of them are the dictionary's.

    Where the site has one token that several were pooled to, that is the only one.
    """
    import numpy as np

    places = vit.token_coords()
    there = vit.kept_at(splice.writes[0], places)
    if there is None:
        return {"token_kind": ("token", np.array(["pooled"]))}, np.array([0])
    return {name: ("token", values) for name, values in places.items()}, there[tokens.cpu().numpy()]


def _labelled(
    found: Comparison,
    tokens: dict[str, Any],
    chosen: np.ndarray,
    images: xr.Dataset,
    names: list[str],
    layer: int | None,
) -> xr.Dataset:
    import numpy as np
    import xarray as xr

    from prisma_steps.analysis.splicing import RUNS

    answers = ("run", "image", "class")
    probability = found.logits.double().softmax(-1).float()
    data: dict[str, Any] = {
        "logit": (answers, found.logits.cpu().numpy(), {"long_name": "logit"}),
        "probability": (answers, probability.cpu().numpy(), {"long_name": "probability of the class"}),
    }
    for name in ("value_norm", "reconstruction_norm", "error_norm"):
        norms = np.full((images.sizes["image"], len(tokens["token_kind"][1])), np.nan, np.float32)
        norms[:, chosen] = getattr(found, name).cpu().numpy()
        data[name] = (("image", "token"), norms)
    if found.attention is not None:
        data["cls_attention"] = (("run", "image", "head", "key_token"), found.attention.cpu().numpy())
    coords = {"run": list(RUNS), "image": images["image"].values, "class_name": ("class", names), **tokens}
    known = {} if "label" not in images.coords else {"label": ("image", images["label"].values)}
    return xr.Dataset(data, {**coords, **known}, {} if layer is None else {"attention_layer": layer})
