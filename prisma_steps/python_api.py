"""From Python: the gathered, lazily opened data of any node of an experiment, and models with hooks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from prisma_steps import datasets
from prisma_steps.execution import open_artifact
from prisma_steps.experiment import find_experiment
from prisma_steps.hypercube import combine
from prisma_steps.plan import JobPlan, Plan, plan_experiment
from prisma_steps.problems import ExperimentError, nearest
from prisma_steps.schema import Dictionary, Kind, Model
from prisma_steps.step import Artifact, load_step
from prisma_steps.store import DATA, Store

if TYPE_CHECKING:
    from prisma_steps.models.hooked import HookedViT
    from prisma_steps.models.splicing import Splice


class NotThere(LookupError):
    """A node that the experiment has not, or whose artifacts are not all made yet."""


def load(experiment: str | Path, node: str, *, store: str | Path | None = None, **select: Any) -> xr.Dataset:
    """The data of a node, every grid axis a dimension, opened lazily (dask).

    Args:
        experiment: file, or name within ``experiments/``.
        node: name of a node.
        store: root of the store (``PRISMA_STEPS_STORE`` or ``artifacts/`` if None).
        select: values of coordinates to select, as for ``Dataset.sel``.

    Raises:
        ExperimentError: when the experiment file is wrong.
        NotThere: when there is no such node, or some of its artifacts are missing.

    Example:
        >>> quality = prisma_steps.load("quickstart", "quality")
        >>> quality.fvu.sel(token_kind="patch").mean("sparsity")
    """
    plan = plan_experiment(experiment, Store(Path(store)) if store is not None else None)
    data = load_node(plan, node)
    return data.sel(select) if select else data


def load_node(plan: Plan, node: str) -> xr.Dataset:
    """The data of a node of a plan, as ``load`` gives them."""
    _check_node(plan, node)
    jobs = list(plan.grids[node].values())
    _check_made(plan, node, jobs)
    threads = os.cpu_count() or 1
    found = [plan.store.artifact(job.step, job.key) for job in jobs]
    parts = [open_artifact(plan.store, artifact, threads, as_dask=True) for artifact in found]
    return combine(parts, plan.experiment.axes[node])


def _check_node(plan: Plan, node: str) -> None:
    if node not in plan.grids:
        raise NotThere(f"{plan.experiment.name} has no node {node!r}; {nearest(node, plan.grids)}")


def _check_made(plan: Plan, node: str, jobs: Sequence[JobPlan]) -> None:
    absent = [job.title for job in jobs if job.key not in plan.present]
    if absent:
        shown = ", ".join(absent[:3]) + (", …" if len(absent) > 3 else "")
        hint = f"prisma-steps run {plan.experiment.file}"
        raise NotThere(
            f"{len(absent)} of {len(jobs)} artifacts of {node} are not there yet ({shown}): {hint}"
        )


def load_model(
    source: str | Path,
    *,
    revision: str | None = None,
    store: str | Path | None = None,
    device: str = "cpu",
    normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
    **select: Any,
) -> HookedViT:
    """A model with hooks on every site, in evaluation mode, its parameters without gradients.

    Args:
        source: a folder that ``save_pretrained`` wrote, or an artifact; a node of an experiment as
            ``experiment/node``; or a hub model as ``org/name``. The first of them that there is.
        revision: branch, tag or commit of a hub model ("main" if None); given, ``source`` is one.
        store: root of the store (``PRISMA_STEPS_STORE`` or ``artifacts/`` if None).
        device: where the weights go.
        normalisation: mean and standard deviation of the pixels, divided by 255, of each channel; of a folder
            or hub model that comes without ``preprocessor_config.json``.
        select: values of the node's axes, until one point of its grid is left.

    Raises:
        ExperimentError: when the experiment file is wrong.
        NotThere: when there is no such node, no such model in it or more than one, or it is not made yet.
        StepError: when the folder or the hub has no such model.

    Example:
        >>> model = prisma_steps.load_model("quickstart/vit", n_layers=3)
        >>> images = prisma_steps.load("quickstart", "unseen").isel(image=slice(8))
        >>> logits, cache = model.run_with_cache(images)
        >>> cache["resid_post"].sel(layer=2)
    """
    from prisma_steps.models.loading import load_model as load_artifact
    from prisma_steps.models.loading import open_folder

    experiment, _, node = str(source).rpartition("/")
    if revision is None and not Path(source).is_dir() and _is_experiment(experiment):
        _refuse(normalisation)
        plan = plan_experiment(experiment, Store(Path(store)) if store is not None else None)
        return load_artifact(_one_artifact(plan, node, select, Model), device)
    if select:
        raise TypeError(f"only a node of an experiment has axes to select by ({', '.join(select)})")
    folder = Path(source) if revision is None and Path(source).is_dir() else _from_hub(str(source), revision)
    if (folder / DATA).exists():
        _refuse(normalisation)
        return load_artifact(Artifact(datasets.open_dataset(folder / DATA), folder), device)
    return open_folder(folder, device, normalisation)


def load_sae(
    source: str | Path, *, store: str | Path | None = None, device: str = "cpu", **select: Any
) -> Splice:
    """A dictionary with its place, to be spliced into its model; ``.dictionary`` is the dictionary itself.

    Args:
        source: a node of an experiment as ``experiment/node``; or a folder: of an artifact, or as SAELens or
            ViT-Prisma writes it.
        store: root of the store (``PRISMA_STEPS_STORE`` or ``artifacts/`` if None).
        device: where the weights go.
        select: values of the node's axes, until one point of its grid is left.

    Raises:
        ExperimentError: when the experiment file is wrong.
        NotThere: when there is no such node, no dictionary in it or more than one, or it is not made yet.
        StepError: when the folder has no such dictionary.

    Example:
        >>> model = prisma_steps.load_model("quickstart/vit", n_layers=3)
        >>> sae = prisma_steps.load_sae("quickstart/sae", architecture="topk", k=8)
        >>> logits, latents = model.run_with_saes(images, {sae.writes: sae}, error_term=True)
    """
    from prisma_steps.sae.placed import as_splice

    return as_splice(_dictionary(source, store, select), device)


def save_sae(
    source: str | Path | xr.Dataset,
    folder: str | Path,
    *,
    format: str = "sae_lens",
    store: str | Path | None = None,
    **select: Any,
) -> Path:
    """Write a dictionary into a new folder as another toolkit reads it; norm factors are folded.

    Args:
        source: as for ``load_sae``, or what a step left, as data.
        folder: where to; made if it is not there.
        format: ``sae_lens`` or ``vit_prisma``.
        store: root of the store (``PRISMA_STEPS_STORE`` or ``artifacts/`` if None).
        select: values of the node's axes, until one point of its grid is left.

    Returns:
        The folder.

    Raises:
        ExperimentError: when the experiment file is wrong.
        NotThere: as ``load_sae``.
        StepError: when the format cannot hold such a dictionary, or the folder holds one.
    """
    from prisma_steps.sae.formats.folders import write_folder
    from prisma_steps.sae.formats.published import from_dataset

    data = source if isinstance(source, xr.Dataset) else _dictionary(source, store, select)
    write_folder(from_dataset(data), Path(folder), format)
    return Path(folder)


def _dictionary(source: str | Path, store: str | Path | None, select: Mapping[str, Any]) -> xr.Dataset:
    """The data of a dictionary in the store."""
    if Path(source).is_dir():
        if select:
            raise TypeError(f"only a node of an experiment has axes to select by ({', '.join(select)})")
        return _dictionary_in(Path(source))
    experiment, _, node = str(source).rpartition("/")
    plan = plan_experiment(experiment, Store(Path(store)) if store is not None else None)
    return _one_artifact(plan, node, select, Dictionary).data


def _dictionary_in(folder: Path) -> xr.Dataset:
    """The dictionary of an artifact, or that of another toolkit."""
    from prisma_steps.sae.formats.folders import read_folder
    from prisma_steps.sae.formats.published import as_dataset

    if not (folder / DATA).exists():
        return as_dataset(read_folder(folder))
    data = datasets.open_dataset(folder / DATA)
    if not {"W_enc", "W_dec"} <= data.keys():
        raise NotThere(f"{folder} holds {', '.join(map(str, data))}, expected a dictionary")
    return data


def _refuse(normalisation: object) -> None:
    if normalisation is not None:
        raise TypeError("normalisation is for a folder or a hub model: an artifact has its image processor")


def _from_hub(name: str, revision: str | None) -> Path:
    from prisma_steps.models import hub

    try:
        return hub.download(name, hub.resolve(name, revision or "main"))
    except hub.HubError as error:
        tried = (
            "" if revision else f"{name!r} is no folder and no node of an experiment here. As a hub model: "
        )
        raise hub.HubError(f"{tried}{error}") from error


def _is_experiment(name: str) -> bool:
    try:
        return find_experiment(name).is_file()
    except ExperimentError:
        return False


def _one_artifact(plan: Plan, node: str, select: Mapping[str, Any], expected: Kind) -> Artifact:
    """The artifact of a node of a kind, at the one point of its grid that ``select`` leaves."""
    _check_node(plan, node)
    jobs = list(plan.grids[node].values())
    kind = load_step(jobs[0].step).output
    if kind is not expected:
        raise NotThere(
            f"{node} is made by {jobs[0].step}, which leaves {kind.name}, expected a {expected.name}"
        )
    strange = sorted(select.keys() - jobs[0].point.keys())
    if strange:
        raise NotThere(f"{node} has no axis {strange[0]!r}; {nearest(strange[0], jobs[0].point)}")
    left = [job for job in jobs if all(job.point[name] == value for name, value in select.items())]
    if len(left) != 1:
        titles = ", ".join(job.title for job in (left or jobs)[:5])
        raise NotThere(f"{len(left)} points of {node} are selected, expected one of: {titles} …")
    _check_made(plan, node, left)
    found = plan.store.artifact(left[0].step, left[0].key)
    return Artifact(open_artifact(plan.store, found), found.folder)
