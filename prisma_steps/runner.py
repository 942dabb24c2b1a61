"""Running jobs: found done, linked, or computed with their company; each leaves a whole artifact or none."""

from __future__ import annotations

import shutil
import socket
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prisma_steps import fingerprint, manifest
from prisma_steps.lock import Owner
from prisma_steps.progress import StatusFile
from prisma_steps.store import Store, Stored, link_tree

if TYPE_CHECKING:
    from prisma_steps.step import Step


class JobError(Exception):
    """A job that cannot be run, with all that the user needs to know."""


#: What became of a job: ``cached`` (another run made it first), ``linked`` (the same computation was done
#: before, under another key), ``computed``, or the error for which it has no artifact.
Outcome = str | Exception

Spec = Mapping[str, Any]


def run_jobs(
    specs: Sequence[Spec], store: Store, statuses: Mapping[str, StatusFile], threads: int = 1
) -> Generator[tuple[str, Outcome], None, None]:
    """Make the artifacts of a company of jobs: one job, or several that are computed together.

    Args:
        specs: the jobs as the plan wrote them (``JobPlan.spec``).
        store: where artifacts lie.
        statuses: whom to tell how far each is, by key.
        threads: how many threads the step may use.

    Yields:
        The key of each job with what became of it, as soon as that is known.

    Raises:
        JobError: when an input is missing, or the code is not the code that was planned.
        StepError: a mistake of the user's that the step found.
    """
    with ExitStack() as locks:
        # In one order everywhere: two runs with members in common never wait for each other.
        for spec in sorted(specs, key=lambda spec: spec["key"]):
            locks.enter_context(store.lock(spec["key"], partial(_tell_waiting, statuses, spec["title"])))
        for status in statuses.values():
            status.update("running")
        missing = [spec for spec in specs if not store.has(spec["step"], spec["key"])]
        yield from ((spec["key"], "cached") for spec in specs if spec not in missing)
        if missing:
            yield from _make(missing, store, statuses, threads)


def _tell_waiting(statuses: Mapping[str, StatusFile], title: str, owner: Owner) -> None:
    for status in statuses.values():
        status.update("waiting", f"{owner} is making {title}")


def _make(
    specs: Sequence[Spec], store: Store, statuses: Mapping[str, StatusFile], threads: int
) -> Iterator[tuple[str, Outcome]]:
    """Link what was computed before, and compute the others together."""
    digests = _input_digests(specs[0], store)
    left: dict[str, Spec] = {}
    for spec in specs:
        identity = {**spec["identity"], "inputs": digests}
        computation = fingerprint.digest({"engine": fingerprint.ENGINE, **identity})
        found = store.outcome(computation)
        if found is None:
            left[computation] = spec
            continue
        _link(spec, store, found, digests, computation)
        yield spec["key"], "linked"
    if left:
        yield from _compute(left, store, digests, statuses, threads)


def _input_digests(spec: Spec, store: Store) -> dict[str, Any]:
    """Digests of what the job reads, in the shape of ``identity["inputs"]``."""
    digests = {}
    for slot, filled in spec["inputs"].items():
        for key in filled["keys"]:
            if not store.has(filled["step"], key):
                raise JobError(
                    f"{spec['title']}: its input {filled['node']} ({filled['step']}/{key}) is gone; run again"
                )
        found = [store.artifact(filled["step"], key).manifest["digest"] for key in filled["keys"]]
        digests[slot] = {"axes": filled["axes"], "digests": found} if filled["gathered"] else found[0]
    return digests


def _link(spec: Spec, store: Store, found: Stored, digests: Mapping[str, Any], computation: str) -> None:
    made = store.partial(spec["key"]) / "artifact"
    shutil.rmtree(made, ignore_errors=True)
    link_tree(found.folder, made)
    facts = {name: found.manifest[name] for name in manifest.FACTS if name in found.manifest}
    facts["linked_from"] = f"{found.step}/{found.key}"
    store.commit(spec["step"], spec["key"], made, manifest.describe(spec, digests, computation, facts))


def _compute(
    specs: Mapping[str, Spec],
    store: Store,
    digests: Mapping[str, Any],
    statuses: Mapping[str, StatusFile],
    threads: int,
) -> Iterator[tuple[str, Outcome]]:
    """Compute jobs together; ``specs`` by the digests of the computations."""
    from prisma_steps.execution import Task, execute
    from prisma_steps.step import load_step

    step = load_step(next(iter(specs.values()))["step"])
    for spec in specs.values():
        _check_as_planned(step, spec, store)
    began = time.monotonic()
    tasks = [
        Task(spec, store.partial(spec["key"]), statuses[spec["key"]].progress) for spec in specs.values()
    ]
    for (computation, spec), made in zip(specs.items(), execute(step, tasks, store, threads), strict=True):
        if isinstance(made, Exception):
            yield spec["key"], made
            continue
        folder, facts = made
        facts |= _facts(threads, began, len(tasks))
        about = manifest.describe(spec, digests, computation, facts)
        yield spec["key"], _commit(step, spec, store, folder, about)


def _check_as_planned(step: Step, spec: Spec, store: Store) -> None:
    from prisma_steps.step import outside_fields

    if fingerprint.code_digest(step) != spec["identity"]["code"]:
        raise JobError(f"{spec['title']}: the code changed after this run was planned; run again")
    outside = spec["identity"].get("outside", {})
    for name in outside.keys() & outside_fields(step.params):
        if fingerprint.folder_digest(Path(spec["parameters"][name]), store.memory) != outside[name]:
            raise JobError(
                f"{spec['title']}: the content of {name} changed after this run was planned; run again"
            )


def _facts(threads: int, began: float, members: int) -> dict[str, Any]:
    """How an artifact was computed; time and memory are those of all that were computed together."""
    return {
        "versions": manifest.versions(),
        "host": socket.gethostname(),
        "threads": threads,
        "seconds": round(time.monotonic() - began, 3),
        "peak_memory": peak_memory(),
        **({"together_with": members - 1} if members > 1 else {}),
    }


def _commit(step: Step, spec: Spec, store: Store, folder: Path, about: Mapping[str, Any]) -> Outcome:
    """Bring an artifact to its place. What goes wrong there is an error of this one and of no other."""
    try:
        store.save_code(spec["identity"]["code"], lambda: fingerprint.code_definitions(step))
        store.commit(spec["step"], spec["key"], folder, about)
    except Exception as error:
        return error
    return "computed"


def peak_memory() -> int:
    """Peak resident memory of this process, in bytes.

    On Linux, ``ru_maxrss`` would also hold that of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        told = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(told["VmHWM"].split()[0]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
