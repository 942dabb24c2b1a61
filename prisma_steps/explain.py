"""Why a job must run: what differs between it and the most similar artifact in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from prisma_steps import fingerprint
from prisma_steps.axes import PART
from prisma_steps.plan import JobPlan, Plan
from prisma_steps.step import all_steps
from prisma_steps.store import Stored


@dataclass(frozen=True)
class Difference:
    """One cause of a new key.

    Attributes:
        node: the node in which the cause lies; not the one asked about when an input changed.
        kind: ``new``, ``parameter``, ``code``, ``outside data`` or ``grid``.
        text: the cause in words.
    """

    node: str
    kind: str
    text: str

    def __str__(self) -> str:
        """Node, kind and cause on one line."""
        return f"{self.node}: {self.text}"


class Explainer:
    """Compares the jobs of a plan with what is in its store."""

    def __init__(self, plan: Plan) -> None:
        """Explain the jobs of ``plan``."""
        self._plan = plan

    @cached_property
    def _stored(self) -> dict[str, dict[str, Stored]]:
        """Artifacts by step and key, of the steps of the plan; the newest first, which wins ties."""
        store = self._plan.store
        found = {}
        for step in {job.step for job in self._plan.jobs.values()}:
            artifacts = [store.artifact(step, key) for key in sorted(store.keys(step))]
            artifacts.sort(key=lambda artifact: artifact.manifest["created"], reverse=True)
            found[step] = {artifact.key: artifact for artifact in artifacts}
        return found

    def nearest(self, job: JobPlan) -> Stored | None:
        """The artifact most like ``job``: of the same node if there is one, with the fewest differences."""
        others = [found for key, found in self._stored[job.step].items() if key != job.key]
        return min(others, key=lambda found: _distance(job, found.manifest), default=None)

    def why(self, job: JobPlan) -> list[Difference]:
        """The causes for which ``job`` is not the nearest artifact, down to the nodes where they lie."""
        found = self.nearest(job)
        if found is None:
            return [Difference(job.node, "new", "new")]
        return self._differences(job, found.manifest)

    def _differences(self, job: JobPlan, old: Mapping[str, Any]) -> list[Difference]:
        return [
            *_parameters(job, old),
            *self._code(job, old),
            *_outside(job, old),
            *self._inputs(job, old),
        ]

    def _code(self, job: JobPlan, old: Mapping[str, Any]) -> list[Difference]:
        before = old["identity"]["code"]
        if before == job.identity["code"]:
            return []
        now = fingerprint.code_definitions(all_steps()[job.step])
        return [Difference(job.node, "code", text) for text in _changed(self._plan.store.code(before), now)]

    def _inputs(self, job: JobPlan, old: Mapping[str, Any]) -> list[Difference]:
        found: dict[Difference, None] = {}
        for slot, filled in job.inputs.items():
            before = old["inputs"].get(slot)
            if before is None:
                found[Difference(job.node, "grid", f"{slot} is a new input")] = None
                continue
            found.update(dict.fromkeys(_grid(job.node, slot, filled.spec(), before)))
            fresh = [key for key in filled.keys if key not in before["keys"]]
            gone = [key for key in before["keys"] if key not in filled.keys]
            for key in fresh if gone or not filled.gathered else []:
                found.update(dict.fromkeys(self._producer(self._plan.jobs[key], gone)))
        return list(found)

    def _producer(self, job: JobPlan, candidates: Sequence[str]) -> list[Difference]:
        """What differs between a producer and the most similar of those that the old artifact read."""
        stored = self._stored[job.step]
        old = [stored[key].manifest for key in candidates if key in stored]
        if not old:
            return self.why(job)
        at_its_point = [manifest for manifest in old if manifest["point"] == job.point]
        return self._differences(job, min(at_its_point or old, key=lambda other: _distance(job, other)))


def _distance(job: JobPlan, old: Mapping[str, Any]) -> tuple[int, int, int]:
    """How unlike two jobs are: in their node, in what enters the key, and in their place in the grid."""
    identity = old["identity"]
    before, now = identity["parameters"], job.identity["parameters"]
    parameters = _count_differences(before, now)
    inputs = sum(identity["inputs"].get(slot) != value for slot, value in job.identity["inputs"].items())
    others = (identity["code"] != job.identity["code"]) + (
        identity.get("outside") != job.identity.get("outside")
    )
    place = _count_differences(old["point"], job.point)
    return int(old["node"] != job.node), parameters + inputs + others, place


def _count_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> int:
    return sum(before.get(name) != now.get(name) for name in before.keys() | now.keys())


def _parameters(job: JobPlan, old: Mapping[str, Any]) -> list[Difference]:
    before, now = old["identity"]["parameters"], job.identity["parameters"]
    texts = []
    names = before.keys() | now.keys()
    if before.get("parts") != now.get("parts"):
        names -= {PART}  # parts of another size
    for name in sorted(names):
        if name not in before:
            texts.append(f"{name} = {now[name]!r}, was not a parameter")
        elif name not in now:
            texts.append(f"{name} (was {before[name]!r}) is no parameter any more")
        elif before[name] != now[name]:
            texts.append(f"{name}: {before[name]!r} → {now[name]!r}")
    return [Difference(job.node, "parameter", text) for text in texts]


def _outside(job: JobPlan, old: Mapping[str, Any]) -> list[Difference]:
    before, now = old["identity"].get("outside", {}), job.identity.get("outside", {})
    return [
        Difference(job.node, "outside data", f"the content of {name} changed")
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def _grid(node: str, slot: str, now: Mapping[str, Any], before: Mapping[str, Any]) -> list[Difference]:
    """Points that came to or left a gathered grid."""
    fresh, old = _coords(now["axes"]), _coords(before["axes"])
    found = []
    for name in sorted(fresh.keys() | old.keys()):
        added = [value for value in fresh.get(name, []) if value not in old.get(name, [])]
        removed = [value for value in old.get(name, []) if value not in fresh.get(name, [])]
        if added or removed:
            words = [f"gains {', '.join(map(str, added))}"] if added else []
            words += [f"loses {', '.join(map(str, removed))}"] if removed else []
            found.append(Difference(node, "grid", f"{slot}: axis {name} {' and '.join(words)}"))
    return found


def _coords(axes: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Coordinates of the points of a grid. Of parts the producer's parameter tells how many there are."""
    return {name: values for _, coords, *joined in axes if not joined for name, values in coords.items()}


def _changed(before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Definitions that were changed, added or removed, as ``changed: module.function``."""
    texts = []
    for module in sorted(before.keys() | now.keys()):
        old, new = before.get(module, {}), now.get(module, {})
        if not old or not new:
            texts.append(f"{'no longer reaches' if old else 'now reaches'} {module}")
            continue
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                word = "changed" if name in old and name in new else "removed" if name in old else "added"
                texts.append(f"{module}: {name} {word}")
    return texts
