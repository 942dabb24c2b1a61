"""Step ``load_sae``: a published dictionary, from a folder or from the hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator, model_validator

from prisma_steps.job import Job
from prisma_steps.schema import Dictionary, label
from prisma_steps.step import Field, HubRevision, OutsideFolder, SiteName, StepError, StepParams, step

if TYPE_CHECKING:
    from collections.abc import Mapping

    import xarray as xr


class Params(StepParams):
    """Which dictionary, and where in a model it belongs if it does not say."""

    path: OutsideFolder | None = Field(None, description="a folder of a SAELens or ViT-Prisma dictionary")
    name: str | None = Field(
        None,
        min_length=1,
        description="a repository of the Hugging Face hub that holds one, as org/name",
    )
    revision: HubRevision = Field(
        "main",
        min_length=1,
        description="branch, tag or commit of the repository; the commit that it is enters the key",
    )
    subfolder: str | None = Field(
        None, min_length=1, description="folder of the repository that holds it, where it is not the first"
    )
    site: SiteName | None = Field(
        None, description="site of the dictionary; needed only where its files do not name one"
    )
    layer: int | None = Field(
        None, ge=0, description="block of the site; needed only where the files do not name one"
    )
    target_site: SiteName | None = Field(
        None, description="site that a transcoder writes; needed only where its files do not name one"
    )
    tokens: Literal["all", "cls", "patch"] | None = Field(
        None, description="tokens that it was trained on; null takes those that the files name, else all"
    )

    @field_validator("subfolder")
    @classmethod
    def _inside(cls, subfolder: str | None) -> str | None:
        if subfolder is not None and not all(part.strip(".") for part in subfolder.split("/")):
            raise ValueError(f"{subfolder!r} is no folder inside a repository, as layer_9/resid_post")
        return subfolder

    @model_validator(mode="after")
    def _one_source(self) -> Params:
        if (self.path is None) == (self.name is None):
            given = "neither" if self.path is None else "both"
            raise ValueError(
                f"a dictionary is given by `path` (a folder) or by `name` (of the hub), got {given}"
            )
        beside = "revision" if self.revision != "main" else "subfolder" if self.subfolder else None
        if self.path is not None and beside:
            raise ValueError(f"`{beside}` is of the hub: leave it out beside `path`")
        return self


@step(inputs={}, output=Dictionary)
def load_sae(params: Params, job: Job) -> xr.Dataset:
    """Take a published sparse dictionary, from a folder or from the hub, into the store.

    SAELens's (``cfg.json``, ``sae_weights.safetensors``) and ViT-Prisma's (``config.json``, ``weights.pt``)
    are read; weights become float32. What would run code, or compute something else here, is refused.

    Returns:
        As ``train_sae`` leaves a dictionary, without a history.

    Raises:
        StepError: when there is no dictionary, its files are damaged or cannot be represented, or where it
            belongs is not known or is not where ``site``, ``layer``, ``target_site`` or ``tokens`` say.
    """
    from prisma_steps.sae.formats.folders import read_folder
    from prisma_steps.sae.formats.published import as_dataset

    folder, source = _source(params)
    found = read_folder(folder)
    data = as_dataset(replace(found, place=_place(found.place, params)))
    job.progress(1, 1)
    return label(data.assign_attrs(**source))


def _source(params: Params) -> tuple[Path, dict[str, str]]:
    """Where the files are, those of a hub once they are downloaded, and what they are called."""
    from prisma_steps.models import hub
    from prisma_steps.sae.formats.folders import FILES

    if params.name is None:
        return Path(str(params.path)), {}
    commit = hub.resolve(params.name, params.revision)
    inside = f"{params.subfolder}/" if params.subfolder else ""
    folder = hub.download(params.name, commit, [f"{inside}{file}" for file in FILES])
    return folder / inside, {"name": params.name, "commit": commit}


def _place(said: Mapping[str, Any], params: Params) -> dict[str, Any]:
    """Where the dictionary belongs, by its files and the parameters.

    Raises:
        StepError: when they contradict each other.
    """
    asked = {name: getattr(params, name) for name in ("site", "layer", "target_site", "tokens")}
    asked = {name: value for name, value in asked.items() if value is not None}
    wrong = [name for name, value in asked.items() if said.get(name, value) != value]
    if wrong:
        raise StepError(
            "; ".join(f"{name} is {asked[name]!r}, and the files say {said[name]!r}" for name in wrong)
            + ": leave it out, or take another dictionary"
        )
    return {**said, **asked}
