"""Jobs as a process of their own: where their output goes, and what is told of their end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import NoReturn

from prisma_steps.progress import StatusFile
from prisma_steps.runner import JobError, Spec, run_jobs
from prisma_steps.store import Store, no_space


def main(specs_json: str, store_root: str, marker: Path, log: Path, threads: int) -> None:
    """Run jobs together as a process of its own.

    It exits with 1 when one of them fails, with the reason in its status and in the log.

    Args:
        specs_json: the jobs, a list.
        store_root: where artifacts lie.
        marker: is made when none of them failed; beside it is the status of each, ``<key>.json``.
        log: where all output goes.
        threads: how many threads the step may use.
    """
    _send_output_to(log)
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    # Threads that wait spin for a moment only: spinning on, they slow each other down many times as soon as
    # another process wants the cores; asleep at once, they wake too late for the small products of a toy ViT.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    signal.signal(signal.SIGTERM, _leave)
    specs = {spec["key"]: spec for spec in json.loads(specs_json)}
    statuses = {key: StatusFile(marker.with_name(f"{key}.json"), str(log)) for key in specs}
    if not _all_made(specs, Store(Path(store_root)), statuses, threads):
        raise SystemExit(1)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()


def _all_made(
    specs: Mapping[str, Spec], store: Store, statuses: Mapping[str, StatusFile], threads: int
) -> bool:
    """Run jobs together and tell what becomes of each; whether all have an artifact now."""
    going, failed = dict(specs), False
    try:
        with closing(run_jobs(list(specs.values()), store, statuses, threads)) as ends:  # lets go of locks
            for key, outcome in ends:
                if isinstance(outcome, Exception):
                    failed = True
                    _tell_failed(outcome, {key: specs[key]}, store, statuses)
                else:
                    statuses[key].update(outcome)
                del going[key]
    except (KeyboardInterrupt, SystemExit):
        for key in going:
            statuses[key].update("failed", "interrupted; run again to go on")
        raise
    except Exception as error:
        failed = True
        _tell_failed(error, going, store, statuses)
    return not failed


def _tell_failed(
    error: Exception, specs: Mapping[str, Spec], store: Store, statuses: Mapping[str, StatusFile]
) -> None:
    """Tell of an error for which some jobs have no artifact."""
    messages = {key: explain(error, spec, store.root, statuses[key].folder) for key, spec in specs.items()}
    for key, message in messages.items():
        statuses[key].update("failed", message)
    if not isinstance(error, _expected()):
        traceback.print_exception(error)
    for key, message in messages.items():
        title = specs[key]["title"]
        sys.stderr.write(f"{message}\n" if message.startswith(title) else f"{title}: {message}\n")


def _leave(sign: int, _frame: object) -> NoReturn:
    """Leave on a polite request to end (a batch system's, say) as on Ctrl-C: letting go of the lock."""
    raise SystemExit(128 + sign)


def _expected() -> tuple[type[BaseException], ...]:
    from prisma_steps.step import StepError

    return (JobError, StepError)


def explain(error: Exception, spec: Spec, root: Path, results: Path) -> str:
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
    if isinstance(error, JobError):
        return str(error)
    if isinstance(error, _expected()):
        return f"{error}{_inputs(spec)}"
    return f"{spec['title']}: {type(error).__name__}: {error}"


def _inputs(spec: Spec) -> str:
    """Which nodes fill the slots that the message may speak of."""
    nodes = [f"{slot} is the node {filled['node']}" for slot, filled in spec["inputs"].items()]
    return f" (inputs: {', '.join(nodes)})" if nodes else ""


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
