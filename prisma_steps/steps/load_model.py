"""Take a pretrained model, from a folder or from the hub, into the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import field_validator, model_validator

from prisma_steps.job import Job
from prisma_steps.schema import Model, label
from prisma_steps.step import Field, HubRevision, Output, OutsideFolder, StepError, StepParams, step

if TYPE_CHECKING:
    import xarray as xr

    from prisma_steps.models.heads import ZeroShotHead
    from prisma_steps.models.hooked import HookedViT
    from prisma_steps.models.loading import Normalisation


class Params(StepParams):
    """Which model, and what its classes are."""

    path: OutsideFolder | None = Field(
        None, description="a folder that save_pretrained of transformers wrote"
    )
    name: str | None = Field(
        None, min_length=1, description="a model of the Hugging Face hub, as openai/clip-vit-base-patch32"
    )
    revision: HubRevision = Field(
        "main",
        min_length=1,
        description="branch, tag or commit of the hub model; the commit that it is enters the key",
    )
    class_names: list[str] | None = Field(
        None,
        min_length=1,
        description="names of the classes, in the order of the logits; null takes those that the model has",
    )
    templates: list[str] | None = Field(
        None,
        min_length=1,
        description='zero-shot classification by a CLIP or SigLIP: texts such as "a photo of a {}."; {} '
        "becomes the name of each class",
    )

    image_mean: list[float] | None = Field(
        None,
        min_length=3,
        max_length=3,
        description="mean of the pixels, divided by 255, that are subtracted of each channel; for a model "
        "that comes without preprocessor_config.json",
        json_schema_extra={"as_before": True},
    )
    image_std: list[Annotated[float, Field(gt=0)]] | None = Field(
        None,
        min_length=3,
        max_length=3,
        description="standard deviation of each channel that the difference is divided by, with image_mean",
        json_schema_extra={"as_before": True},
    )

    @field_validator("templates")
    @classmethod
    def _one_gap_each(cls, templates: list[str] | None) -> list[str] | None:
        wrong = [template for template in templates or [] if template.count("{}") != 1]
        if wrong:
            raise ValueError(
                f"a template has {{}} once, where the name of the class goes; {wrong[0]!r} has not"
            )
        return templates

    @model_validator(mode="after")
    def _one_source(self) -> Params:
        if (self.path is None) == (self.name is None):
            given = "neither" if self.path is None else "both"
            raise ValueError(f"a model is given by `path` (a folder) or by `name` (of the hub), got {given}")
        if self.path is not None and self.revision != "main":
            raise ValueError("`revision` is of a hub model: leave it out beside `path`")
        return self

    @model_validator(mode="after")
    def _mean_and_std_together(self) -> Params:
        if (self.image_mean is None) != (self.image_std is None):
            raise ValueError("`image_mean` and `image_std` are given together, or neither")
        return self

    @model_validator(mode="after")
    def _templates_need_classes(self) -> Params:
        if self.templates is not None and self.class_names is None:
            raise ValueError("`templates` need `class_names`, the classes to tell apart")
        return self


@step(inputs={}, output=Model)
def load_model(params: Params, job: Job) -> Output:
    """Take a pretrained model, from a folder or from the hub, into the store.

    Any vision transformer of transformers that ``models/families.py`` has a table of. Of a model of images
    and texts, the vision part is kept; ``templates`` make a classifier of it with the text tower.

    Raises:
        StepError: when there is no model, none with safetensors, or none that is known; when the classes
            named are not as many as the model has; and when nothing says how its images are prepared.
    """
    from prisma_steps.models.heads import head_files
    from prisma_steps.models.loading import model_files, open_folder
    from prisma_steps.models.preprocessing import preprocessing_files

    folder, source = _source(params)
    vit = open_folder(folder, job.device, _normalisation(params))
    vit.head = _zero_shot(folder, params, job) or vit.head
    files = dict(model_files(vit.model))
    if vit.head is not None:
        files |= head_files(vit.head)
    if vit.preprocessing is not None:
        files |= preprocessing_files(vit.preprocessing)
    return Output(label(_described(vit, params.class_names, source)), files)


def _source(params: Params) -> tuple[Path, dict[str, str]]:
    """Where the model's files are, those of a hub model once they are downloaded, and what it is called."""
    from prisma_steps.models import hub

    if params.name is None:
        return Path(str(params.path)), {}
    commit = hub.resolve(params.name, params.revision)
    texts = hub.TOKENIZER_FILES if params.templates else ()
    folder = hub.download(params.name, commit, (*hub.MODEL_FILES, *texts))
    return folder, {"name": params.name, "commit": commit}


def _normalisation(params: Params) -> Normalisation | None:
    mean, std = params.image_mean, params.image_std
    return None if mean is None or std is None else (mean, std)


def _zero_shot(folder: Path, params: Params, job: Job) -> ZeroShotHead | None:
    from prisma_steps.models.zero_shot import zero_shot_head

    if params.templates is None or params.class_names is None:
        return None
    return zero_shot_head(folder, params.class_names, params.templates, job)


def _described(vit: HookedViT, class_names: list[str] | None, source: dict[str, str]) -> xr.Dataset:
    """The names of the classes, and as attributes what the model is."""
    import numpy as np
    import xarray as xr

    if class_names is not None and len(class_names) != vit.n_classes:
        raise StepError(
            f"load_model: {len(class_names)} class_names are given, and the model has {vit.n_classes} classes"
            + ("" if vit.n_classes else ": a CLIP or SigLIP takes them together with templates")
        )
    names = vit.class_names if class_names is None else class_names
    coords: dict[str, Any] = {}
    if names is not None:
        coords = {"class": np.arange(len(names)), "class_name": ("class", np.array(names))}
    return xr.Dataset(coords=coords, attrs={**source, **_attributes(vit)})


def _attributes(vit: HookedViT) -> dict[str, Any]:
    *frames, channels, rows, columns = vit.input_shape
    return {
        "model_type": vit.model.config.model_type,
        "model_class": type(vit.model).__name__,
        "n_layers": vit.n_layers,
        "d_model": vit.d_model,
        "n_heads": vit.n_heads,
        "d_mlp": vit.d_mlp,
        "n_channels": channels,
        "image_size": [rows, columns],
        **({"n_frames": frames[0]} if frames else {}),
        "n_parameters": sum(parameter.numel() for parameter in vit.model.parameters()),
        "preprocessing": "pixels / 255"
        if vit.preprocessing is None
        else type(vit.preprocessing.processor).__name__,
    }
