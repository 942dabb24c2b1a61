"""From an experiment to its jobs: one for each grid point of each node, with its key.

Planning imports neither torch nor xarray, so that it costs Snakemake and the command next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from prisma_steps import fingerprint
from prisma_steps.axes import Axis, Index, View, points
from prisma_steps.company import Company, companies
from prisma_steps.experiment import Experiment, find_experiment, read_experiment
from prisma_steps.models import hub
from prisma_steps.node import Node
from prisma_steps.problems import ExperimentError, Problem
from prisma_steps.step import outside_fields, revision_fields
from prisma_steps.store import Store


@dataclass(frozen=True)
class InputPlan:
    """What fills a slot of a job: one artifact, or a gathered grid or the parts of one.

    Attributes:
        keys: the producers' keys, the last axis fastest; exactly one when there are no axes.
        axes: the gathered axes; the last may be that of parts.
    """

    step: str
    node: str
    keys: tuple[str, ...]
    axes: tuple[Axis, ...] = ()
    gathered: bool = False

    def identity(self) -> Any:
        """What of it enters the consumer's key."""
        if not self.gathered:
            return self.keys[0]
        return {"axes": _plain_axes(self.axes), "keys": list(self.keys)}

    def spec(self) -> dict[str, Any]:
        """As plain data, for the runner."""
        return {
            "step": self.step,
            "node": self.node,
            "keys": list(self.keys),
            "axes": _plain_axes(self.axes),
            "gathered": self.gathered,
        }


def _plain_axes(axes: Sequence[Axis]) -> list[Any]:
    """(name, coordinates) of axes; for parts the dimension that they are joined along too."""
    return [
        [
            axis.name,
            {name: list(values) for name, values in axis.coords.items()},
            *([axis.joined] if axis.joined else []),
        ]
        for axis in axes
    ]


@dataclass(frozen=True)
class JobPlan:
    """One job: a point of a node's grid.

    Attributes:
        point: the coordinates of the point, by name, for people.
        parameters: all parameters, as the step receives them.
        identity: what the job is; its hash is the key.
    """

    key: str
    node: str
    step: str
    point: Mapping[str, Any]
    parameters: Mapping[str, Any]
    identity: Mapping[str, Any]
    inputs: Mapping[str, InputPlan]

    @property
    def title(self) -> str:
        """The node and the point, as ``sae[k=8, layer=1]``."""
        point = ", ".join(f"{name}={value}" for name, value in self.point.items())
        return f"{self.node}[{point}]" if point else self.node

    def spec(self, experiment: str) -> dict[str, Any]:
        """All that the runner needs, as plain data."""
        return {
            "step": self.step,
            "key": self.key,
            "title": self.title,
            "node": self.node,
            "experiment": experiment,
            "point": dict(self.point),
            "parameters": dict(self.parameters),
            "identity": dict(self.identity),
            "inputs": {slot: filled.spec() for slot, filled in self.inputs.items()},
        }

    def producers(self) -> Iterator[tuple[str, str]]:
        """(step, key) of every artifact that the job reads."""
        return ((filled.step, key) for filled in self.inputs.values() for key in filled.keys)


@dataclass
class Plan:
    """An experiment's jobs.

    Attributes:
        grids: the job at every index of every node's grid.
        jobs: every job once, by key; nodes that are the same computation share jobs.
    """

    experiment: Experiment
    store: Store
    grids: dict[str, dict[Index, JobPlan]] = field(default_factory=dict)
    jobs: dict[str, JobPlan] = field(default_factory=dict)

    @cached_property
    def present(self) -> set[str]:
        """Keys of the jobs whose artifacts were in the store when first asked."""
        steps = {job.step for job in self.jobs.values()}
        stored = {step: self.store.keys(step) for step in steps}
        return {key for key, job in self.jobs.items() if key in stored[job.step]}

    def missing(self) -> list[JobPlan]:
        """Jobs without an artifact, inputs first."""
        return [job for key, job in self.jobs.items() if key not in self.present]

    @cached_property
    def _companies(self) -> Mapping[str, Company]:
        steps = {name: node.step for name, node in self.experiment.nodes.items()}
        return companies(self.jobs, steps)

    def company(self, key: str) -> list[JobPlan]:
        """The job of a key, and after it the missing ones that are computed together with it."""
        others = [other for other in self._companies[key] if other != key and other not in self.present]
        return [self.jobs[member] for member in (key, *others)]

    def leader(self, key: str) -> JobPlan:
        """The job in whose name Snakemake computes the missing job of a key: the first of its company."""
        return self.jobs[next(other for other in self._companies[key] if other not in self.present)]

    def leaders(self) -> list[JobPlan]:
        """The jobs that Snakemake sees: of each company of missing jobs its leader, inputs first."""
        return list({job.key: job for job in (self.leader(job.key) for job in self.missing())}.values())

    def refresh(self) -> None:
        """Look at the store again."""
        self.__dict__.pop("present", None)


def plan_experiment(name: str | Path, store: Store | None = None) -> Plan:
    """Plan an experiment given by file or name.

    Raises:
        ExperimentError: with every problem in the file.
    """
    experiment = read_experiment(find_experiment(name))
    plan = Plan(experiment, store or Store())
    digests: dict[str, str] = {}
    for node in experiment.nodes.values():
        _plan_node(plan, node, digests)
    return plan


def _plan_node(plan: Plan, node: Node, digests: dict[str, str]) -> None:
    axes = plan.experiment.axes[node.name]
    own = [next(i for i, axis in enumerate(axes) if axis.name == mine.name) for mine in node.own_axes]
    code = fingerprint.code_digest(node.step)
    fixed = {index: _parameters(plan, node, index, digests) for index in node.combinations}
    slots = {slot: _slot(plan, node, slot, axes) for slot in node.step.inputs}
    grid: dict[Index, JobPlan] = {}
    for index in points(axes):
        parameters, in_key, outside = fixed[tuple(index[i] for i in own)]
        at = {axis.name: i for axis, i in zip(axes, index, strict=True)}
        inputs = {slot: filled.at(at) for slot, filled in slots.items()}
        identity: dict[str, Any] = {
            "step": node.step.name,
            "parameters": in_key,
            "code": code,
            "inputs": {slot: filled.identity() for slot, filled in inputs.items()},
        }
        if outside:
            identity["outside"] = outside
        point = {
            name: value for axis, i in zip(axes, index, strict=True) for name, value in axis.at(i).items()
        }
        key = fingerprint.key_of(identity)
        job = JobPlan(key, node.name, node.step.name, point, parameters, identity, inputs)
        grid[index] = job
        plan.jobs.setdefault(key, job)
    plan.grids[node.name] = grid


def _parameters(
    plan: Plan, node: Node, index: Index, digests: dict[str, str]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """Parameters as the step gets them, as they enter the key, and what the outside data they name are.

    Of a folder that is the digest of its content, of a hub model its commit, which the step gets too.
    """
    params = node.combinations[index]
    values = params.model_dump(mode="json")
    outside = {}
    for name in outside_fields(type(params)):
        folder = values[name]
        if folder is not None:
            if folder not in digests:
                digests[folder] = _outside_digest(plan, f"{node.name}.{name}", Path(folder))
            outside[name] = digests[folder]
    for name, of in revision_fields(type(params)).items():
        if values[of] is not None:
            known = f"{values[of]}@{values[name]}"
            if known not in digests:
                digests[known] = _commit(plan, f"{node.name}.{of}", values[of], values[name])
            values[name] = outside[name] = digests[known]
    return values, fingerprint.parameters_in_key(params), outside


def _outside_digest(plan: Plan, where: str, folder: Path) -> str:
    try:
        return fingerprint.folder_digest(folder, plan.store.memory)
    except OSError as error:
        what = f"cannot be read: {error.strerror}: {error.filename}"
        raise ExperimentError(plan.experiment.file, [Problem(0, 0, where, what)]) from None


def _commit(plan: Plan, where: str, name: str, revision: str) -> str:
    try:
        return hub.resolve(name, revision)
    except hub.HubError as error:
        raise ExperimentError(plan.experiment.file, [Problem(0, 0, where, str(error))]) from None


@dataclass(frozen=True)
class _Filled:
    """A slot of a node, ready to be asked what fills it at a grid point."""

    step: str
    node: str
    grid: Mapping[Index, JobPlan]
    view: View
    gathered: tuple[Axis, ...] | None

    def at(self, point: Mapping[str, int]) -> InputPlan:
        if self.gathered is None:
            return InputPlan(self.step, self.node, (self.grid[self.view.index(point)].key,))
        names = [axis.name for axis in self.gathered]
        keys = tuple(
            self.grid[self.view.index({**point, **dict(zip(names, index, strict=True))})].key
            for index in points(self.gathered)
        )
        return InputPlan(self.step, self.node, keys, self.gathered, gathered=True)


def _slot(plan: Plan, node: Node, slot: str, axes: Sequence[Axis]) -> _Filled:
    producer = plan.experiment.nodes[node.references[slot].node]
    seen = plan.experiment.views[node.name, slot]
    mine = {axis.name for axis in axes}
    gather = node.step.inputs[slot].gather
    gathered = tuple(axis for axis in seen.axes.values() if axis.joined or (gather and axis.name not in mine))
    return _Filled(
        producer.step.name,
        producer.name,
        plan.grids[producer.name],
        seen,
        gathered if gather or gathered else None,
    )
