"""Calling a step: artifacts in as labelled data, labelled data out as an unfinished artifact."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from prisma_steps import datasets, fingerprint, schema
from prisma_steps.axes import Axis
from prisma_steps.data import outside_pixels
from prisma_steps.hypercube import combine
from prisma_steps.job import Job, Member
from prisma_steps.step import Artifact, Blocks, Output, Step, StepError
from prisma_steps.store import DATA, Store, Stored

#: Pixels of files that a dask task reads at once.
_READ_BYTES = 2**26

Report = Callable[[int, int, str], None]


#: What became of a task: the folder to be committed and facts for the manifest; or why there is none.
Made = tuple[Path, dict[str, Any]] | Exception


@dataclass(frozen=True)
class Task:
    """A job to be computed.

    Attributes:
        spec: the job as the plan wrote it.
        partial: the folder to work in, going on from what lies there.
        report: whom to tell how far it is.
    """

    spec: Mapping[str, Any]
    partial: Path
    report: Report


def execute(step: Step, tasks: Sequence[Task], store: Store, threads: int) -> Iterator[Made]:
    """Call the step and write what it returns.

    Args:
        step: the step of the tasks. One that computes points together does so with a single one too.
        tasks: jobs that read the same inputs, which are opened once.
        store: where the inputs lie.
        threads: how many threads the step may use.

    Yields:
        What became of each task, in order, as soon as it is written. What fails while one task is written is
        an error of that one.

    Raises:
        Exception: whatever the step raises; there is nothing then of the tasks that are left.
    """
    datasets.use_threads(threads)
    slots = {
        slot: open_input(store, filled, step.inputs[slot].kind, threads)
        for slot, filled in tasks[0].spec["inputs"].items()
    }
    members = [_member(step, task, threads) for task in tasks]
    results = iter(_results(step, slots, members))
    for task in tasks:
        try:
            result = next(results)
        except StopIteration:
            raise TypeError(
                f"{step.name} left fewer results than the {len(tasks)} points it was given"
            ) from None
        yield result if isinstance(result, StepError) else _written(result, step, task, members)


def _member(step: Step, task: Task, threads: int) -> Member[Any]:
    job = Job(scratch=task.partial / "scratch", threads=threads, report=task.report)
    return Member(step.params.model_validate(task.spec["parameters"]), job)


def _results(step: Step, slots: Mapping[str, Any], members: Sequence[Member[Any]]) -> Iterable[Any]:
    if step.together is not None:
        return step.together(**slots, members=members)
    (alone,) = members
    return [step.function(**slots, params=alone.params, job=alone.job)]


def _written(result: Any, step: Step, task: Task, members: Sequence[Member[Any]]) -> Made:
    made = task.partial / "artifact"
    try:
        _write(result, made, task.partial, step, task.report)
        data = datasets.describe(datasets.open_dataset(made / DATA))
    except Exception as error:
        return error
    return made, {"data": data, "device": _device(members)}


def _device(members: Sequence[Member[Any]]) -> str:
    """The device that was used: one member may have asked for it on behalf of all."""
    asked = [member.job for member in members if "device" in vars(member.job)]
    return (asked or [members[0].job])[0].device_name


def open_input(
    store: Store, filled: Mapping[str, Any], kind: schema.Kind, threads: int = 1
) -> xr.Dataset | Artifact:
    """What fills a slot: one artifact's data (with its files if the kind has some), or several as one."""
    artifacts = [store.artifact(filled["step"], key) for key in filled["keys"]]
    if not filled["gathered"]:
        data = open_artifact(store, artifacts[0], threads)
        return Artifact(data, artifacts[0].folder) if kind.files else data
    axes = [
        Axis(name, {key: tuple(values) for key, values in coords.items()}, *joined)
        for name, coords, *joined in filled["axes"]
    ]
    only_parts = len(axes) == 1 and axes[0].joined is not None
    parts = [open_artifact(store, found, threads, as_dask=not only_parts) for found in artifacts]
    return combine(parts, axes)


def open_artifact(store: Store, artifact: Stored, threads: int = 1, *, as_dask: bool = False) -> xr.Dataset:
    """An artifact's data, opened lazily; pixels that stay in their files are read from there.

    Args:
        store: knows where the folders are that pixels are read from.
        artifact: what to open.
        threads: how many files are decoded at once.
        as_dask: as dask arrays, instead of arrays that are read when indexed.

    Raises:
        StepError: when the folder that pixels are read from is not where it was.
    """
    data = (datasets.open_lazily if as_dask else datasets.open_dataset)(artifact.data)
    if not outside_pixels.are_outside(data):
        return data
    data = outside_pixels.attach(data, _folder(store, artifact), threads)
    if not as_dask:
        return data
    images = max(1, _READ_BYTES * data.sizes["image"] // max(1, data["pixels"].nbytes))
    return data.assign(pixels=data["pixels"].chunk({"image": images}))


def _folder(store: Store, artifact: Stored) -> Path:
    """The folder outside the store whose content an artifact was made from."""
    (content,) = artifact.manifest["identity"]["outside"].values()
    seen = fingerprint.places(content, store.memory)
    there = next((place for place in seen if Path(place).is_dir()), None)
    if there is None:
        raise StepError(
            f"{artifact.manifest['title']}: its pixels are read from a folder that is no longer where it was "
            f"({', '.join(seen) or 'never seen from this store'}). Put it back; or set `path` to where it is "
            "now and plan the experiment (prisma-steps plan): the store then knows the place."
        )
    return Path(there)


def _write(result: Any, made: Path, partial: Path, step: Step, report: Report) -> None:
    """Write a step's result; only blocks go on from what an interrupted job left."""
    if isinstance(result, Blocks):
        schema.check(schema.label(result.template), step.output)
        made.mkdir(exist_ok=True)
        for left in [path for path in made.iterdir() if path.name != DATA]:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        datasets.write_blocks(result, made / DATA, partial / "blocks.json", report)
        return
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    output = result if isinstance(result, Output) else Output(result)
    schema.check(schema.label(output.data), step.output)
    missing = set(step.output.files) - set(output.files)
    if missing:
        raise StepError(f"{step.name} left no {', '.join(sorted(missing))}")
    datasets.write(outside_pixels.detach(output.data), made / DATA)
    for name, write in output.files.items():
        write(made / name)
