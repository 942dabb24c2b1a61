"""Keeping a store: checking it, computing again, repairing it, and removing what nobody needs."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prisma_steps.lock import holder
from prisma_steps.plan import JobPlan, Plan, plan_experiment
from prisma_steps.step import load_step
from prisma_steps.store import Store, Stored, content_digest


@dataclass(frozen=True)
class Damage:
    """An artifact that does not hold what was written."""

    artifact: Stored
    files: list[str]


def damaged(artifacts: Iterable[Stored], report: Callable[[Stored], None]) -> list[Damage]:
    """Re-hash every file of every artifact; ``report`` is told each artifact before it is read."""
    found = []
    for artifact in artifacts:
        report(artifact)
        files = artifact.damaged()
        if files:
            found.append(Damage(artifact, files))
    return found


def artifacts_of(plan: Plan) -> list[Stored]:
    """The artifacts of a plan that are in its store."""
    return [plan.store.artifact(job.step, job.key) for key, job in plan.jobs.items() if key in plan.present]


def repair(plan: Plan, report: Callable[[Stored], None]) -> list[Damage]:
    """Remove the damaged artifacts of a plan, so that the next run makes them again."""
    found = damaged(artifacts_of(plan), report)
    for damage in found:
        with plan.store.lock(damage.artifact.key, lambda _owner: None):
            plan.store.remove(damage.artifact)
    plan.refresh()
    return found


@dataclass(frozen=True)
class Recomputed:
    """A job that was run again, beside the artifact that it left the first time."""

    job: JobPlan
    before: str
    now: str

    @property
    def same(self) -> bool:
        """Whether both hold the same bytes."""
        return self.before == self.now


def recompute(plan: Plan, count: int) -> list[Recomputed]:
    """Run ``count`` jobs of a plan again, chosen at random, with as many threads, and compare the digests.

    More threads add up in another order, which can change the last bits.
    """
    there = [job for key, job in plan.jobs.items() if key in plan.present]
    chosen = random.sample(there, min(count, len(there)))
    found = []
    for job in chosen:
        manifest = plan.store.artifact(job.step, job.key).manifest
        found.append(Recomputed(job, manifest["digest"], _recomputed_digest(plan, job, manifest["threads"])))
    return found


def _recomputed_digest(plan: Plan, job: JobPlan, threads: int) -> str:
    from prisma_steps.execution import Task, execute

    partial = plan.store.partial(f"recompute-{job.key}")
    try:
        task = Task(job.spec(plan.experiment.name), partial, lambda *_: None)
        (made,) = execute(load_step(job.step), [task], plan.store, threads)
        if isinstance(made, Exception):
            raise made
        return content_digest(made[0])
    finally:
        shutil.rmtree(partial)


def plans_in(folder: Path, store: Store) -> list[Plan]:
    """Every experiment of a folder, planned.

    Raises:
        ExperimentError: when one of them cannot be; what it needs is unknown then.
    """
    return [plan_experiment(file, store) for file in sorted(folder.glob("*.yaml"))]


@dataclass(frozen=True)
class Garbage:
    """What no experiment needs."""

    artifacts: list[Stored]
    partial: list[Path]
    bytes: int


def garbage(store: Store, plans: Sequence[Plan]) -> Garbage:
    """Artifacts that no plan reaches, and partial folders of jobs that nobody works on and no plan holds."""
    needed = {key for plan in plans for key in plan.jobs}
    artifacts = [found for found in store if found.key not in needed]
    folder = store.root / ".partial"
    partial = [
        path
        for path in (sorted(folder.iterdir()) if folder.is_dir() else [])
        if path.name not in needed and holder(store.root / ".locks" / path.name) is None
    ]
    size = sum(_size(path) for path in [*(found.folder for found in artifacts), *partial])
    return Garbage(artifacts, partial, size)


def collect(store: Store, found: Garbage) -> None:
    """Remove what ``garbage`` found, and the traces that lead to it."""
    for artifact in found.artifacts:
        store.remove(artifact)
    for path in found.partial:
        shutil.rmtree(path)
    store.forget_gone()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
