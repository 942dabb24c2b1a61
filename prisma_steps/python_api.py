"""From Python: the gathered, lazily opened data of any node of an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr

from prisma_steps import datasets
from prisma_steps.plan import Plan, plan_experiment
from prisma_steps.problems import nearest
from prisma_steps.store import Store


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
    if node not in plan.grids:
        raise NotThere(f"{plan.experiment.name} has no node {node!r}; {nearest(node, plan.grids)}")
    jobs = list(plan.grids[node].values())
    absent = [job.title for job in jobs if job.key not in plan.present]
    if absent:
        shown = ", ".join(absent[:3]) + (", …" if len(absent) > 3 else "")
        hint = f"prisma-steps run {plan.experiment.file}"
        raise NotThere(
            f"{len(absent)} of {len(jobs)} artifacts of {node} are not there yet ({shown}): {hint}"
        )
    parts = [datasets.open_lazily(plan.store.artifact(job.step, job.key).data) for job in jobs]
    return datasets.combine(parts, plan.experiment.axes[node])
