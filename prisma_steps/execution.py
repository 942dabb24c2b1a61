"""Calling a step: artifacts in as labelled data, labelled data out as an unfinished artifact."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from prisma_steps import datasets, schema
from prisma_steps.axes import Axis
from prisma_steps.step import Artifact, Blocks, Job, Output, Step, StepError
from prisma_steps.store import DATA, Store

Report = Callable[[int, int, str], None]


def execute(
    step: Step, spec: Mapping[str, Any], store: Store, partial: Path, report: Report, threads: int
) -> tuple[Path, dict[str, Any]]:
    """Call the step and write what it returns below ``partial``, going on from what lies there.

    Returns:
        The folder to be committed, and facts for the manifest.
    """
    datasets.use_threads(threads)
    job = Job(scratch=partial / "scratch", threads=threads, report=report)
    job.scratch.mkdir(exist_ok=True)
    slots = {
        slot: open_input(store, filled, step.inputs[slot].kind) for slot, filled in spec["inputs"].items()
    }
    params = step.params.model_validate(spec["parameters"])
    result = step.function(**slots, params=params, job=job)
    made = partial / "artifact"
    _write(result, made, partial, step, report)
    return made, {"data": datasets.describe(datasets.open_dataset(made / DATA)), "device": job.device_name}


def open_input(store: Store, filled: Mapping[str, Any], kind: schema.Kind) -> xr.Dataset | Artifact:
    """What fills a slot: one artifact's data (with its files if the kind has some), or several as one."""
    artifacts = [store.artifact(filled["step"], key) for key in filled["keys"]]
    if not filled["gathered"]:
        data = datasets.open_dataset(artifacts[0].data)
        return Artifact(data, artifacts[0].folder) if kind.files else data
    axes = [
        Axis(name, {key: tuple(values) for key, values in coords.items()}, *joined)
        for name, coords, *joined in filled["axes"]
    ]
    return datasets.combine([datasets.open_lazily(found.data) for found in artifacts], axes)


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
    datasets.write(output.data, made / DATA)
    for name, write in output.files.items():
        write(made / name)
