"""Running one job: find it done, link it, or compute it; and leave a whole artifact or none."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from prisma_steps import fingerprint
from prisma_steps.lock import Owner
from prisma_steps.progress import StatusFile
from prisma_steps.store import Store, Stored, link_tree, no_space

#: What a manifest says of how its data were computed; a linked artifact inherits it.
_FACTS = ("data", "versions", "host", "device", "threads", "seconds", "peak_memory")

_PACKAGES = (
    "prisma-steps",
    "torch",
    "transformers",
    "numpy",
    "xarray",
    "zarr",
    "dask",
    "snakemake",
    "matplotlib",
)


class JobError(Exception):
    """A job that cannot be run, with all that the user needs to know."""


def run_job(spec: Mapping[str, Any], store: Store, status: StatusFile, threads: int = 1) -> str:
    """Make the artifact of a job.

    Args:
        spec: the job as the plan wrote it (``JobPlan.spec``).
        store: where artifacts lie.
        status: whom to tell how far it is.
        threads: how many threads the step may use.

    Returns:
        ``cached`` (another run made it first), ``linked`` (the same computation was done before, under
        another key) or ``computed``.

    Raises:
        JobError: when an input is missing, or the code is not the code that was planned.
        StepError: a mistake of the user's that the step found.
    """
    step, key = spec["step"], spec["key"]

    def on_wait(owner: Owner) -> None:
        status.update("waiting", f"{owner} is making it")

    with store.lock(key, on_wait):
        status.update("running")
        if store.has(step, key):
            return "cached"
        digests = _input_digests(spec, store)
        identity = {**spec["identity"], "inputs": digests}
        computation = fingerprint.digest({"engine": fingerprint.ENGINE, **identity})
        found = store.outcome(computation)
        if found is not None:
            _link(spec, store, found, digests, computation)
            return "linked"
        _compute(spec, store, digests, computation, status, threads)
        return "computed"


def _input_digests(spec: Mapping[str, Any], store: Store) -> dict[str, Any]:
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


def _link(
    spec: Mapping[str, Any], store: Store, found: Stored, digests: Mapping[str, Any], computation: str
) -> None:
    made = _fresh(store.partial(spec["key"]) / "artifact", make=False)
    link_tree(found.folder, made)
    facts = {name: found.manifest[name] for name in _FACTS}
    facts["linked_from"] = f"{found.step}/{found.key}"
    store.commit(spec["step"], spec["key"], made, _manifest(spec, digests, computation, facts))


def _fresh(folder: Path, *, make: bool = True) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    if make:
        folder.mkdir(parents=True)
    return folder


def _compute(
    spec: Mapping[str, Any],
    store: Store,
    digests: Mapping[str, Any],
    computation: str,
    status: StatusFile,
    threads: int,
) -> None:
    from prisma_steps.execution import execute
    from prisma_steps.step import load_step, outside_fields

    step = load_step(spec["step"])
    if fingerprint.code_digest(step) != spec["identity"]["code"]:
        raise JobError(f"{spec['title']}: the code changed after this run was planned; run again")
    outside = spec["identity"].get("outside", {})
    for name in outside.keys() & outside_fields(step.params):
        if fingerprint.folder_digest(Path(spec["parameters"][name]), store.memory) != outside[name]:
            raise JobError(
                f"{spec['title']}: the content of {name} changed after this run was planned; run again"
            )
    began = time.monotonic()
    made, facts = execute(step, spec, store, store.partial(spec["key"]), status.progress, threads)
    facts |= {
        "versions": _versions(),
        "host": socket.gethostname(),
        "threads": threads,
        "seconds": round(time.monotonic() - began, 3),
        "peak_memory": peak_memory(),
    }
    store.save_code(spec["identity"]["code"], lambda: fingerprint.code_definitions(step))
    store.commit(spec["step"], spec["key"], made, _manifest(spec, digests, computation, facts))


def _manifest(
    spec: Mapping[str, Any], digests: Mapping[str, Any], computation: str, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """All that is to be said of an artifact, without paths of this machine."""
    outside = spec["identity"].get("outside", {})
    parameters = {
        name: Path(value).name if name in outside else value for name, value in spec["parameters"].items()
    }
    inputs = {
        slot: {**filled, "digests": digests[slot]["digests"] if filled["gathered"] else [digests[slot]]}
        for slot, filled in spec["inputs"].items()
    }
    return {
        "title": spec["title"],
        "experiment": spec["experiment"],
        "node": spec["node"],
        "point": spec["point"],
        "parameters": parameters,
        "identity": spec["identity"],
        "inputs": inputs,
        "computation": computation,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "git": _git_commit(),
        **facts,
    }


def _versions() -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git_commit() -> str | None:
    """The commit of the current folder, with a + when files differ from it; None outside a repository."""
    described = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None


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


def main(spec_json: str, store_root: str, marker: Path, log: Path, status_file: Path, threads: int) -> None:
    """Run a job as a process of its own; exits with 1 on failure, with the reason in status and log."""
    _send_output_to(log)
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    # Threads that wait spin for a moment only: spinning on, they slow each other down many times as soon as
    # another process wants the cores; asleep at once, they wake too late for the small products of a toy ViT.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    signal.signal(signal.SIGTERM, _leave)
    status = StatusFile(status_file, str(log))
    spec = json.loads(spec_json)
    try:
        outcome = run_job(spec, Store(Path(store_root)), status, threads)
    except (KeyboardInterrupt, SystemExit):
        status.update("failed", "interrupted; run again to go on")
        raise
    except Exception as error:
        message = explain(error, spec, Path(store_root), status_file.parent)
        status.update("failed", message)
        if not isinstance(error, _expected()):
            traceback.print_exc()
        sys.stderr.write(f"{message}\n")
        raise SystemExit(1) from None
    status.update(outcome)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()


def _leave(sign: int, _frame: object) -> NoReturn:
    """Leave on a polite request to end (a batch system's, say) as on Ctrl-C: letting go of the lock."""
    raise SystemExit(128 + sign)


def _expected() -> tuple[type[BaseException], ...]:
    from prisma_steps.step import StepError

    return (JobError, StepError)


def explain(error: Exception, spec: Mapping[str, Any], root: Path, results: Path) -> str:
    """What to tell the user of an error, which arose in a job with files in the store and in ``results``."""
    if no_space(error):
        full = min((root, results), key=lambda folder: shutil.disk_usage(folder).free)
        if full == results:
            return f"{spec['title']}: no space left on the disk of {results}; make room and run again"
        _make_room(root / ".partial" / spec["key"])
        return (
            f"{spec['title']}: no space left in the store {root.resolve()}. No half-written artifact is in "
            "it; make room (prisma-steps gc shows what no experiment needs) and run again"
        )
    if isinstance(error, _expected()):
        return str(error)
    return f"{spec['title']}: {type(error).__name__}: {error}"


def _make_room(partial: Path) -> None:
    """Remove what the next run would write anew, for the sake of jobs that could still fit in."""
    if not (partial / "blocks.json").exists():
        shutil.rmtree(partial / "artifact", ignore_errors=True)


def _send_output_to(log: Path) -> None:
    """Have all output of this process, of libraries and children too, go to the job's log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)
