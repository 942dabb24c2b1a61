"""Calling a step: artifacts in as labelled data, labelled data out as an unfinished artifact."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from prisma_steps import datasets, fingerprint, schema
from prisma_steps.axes import Axis
from prisma_steps.data import outside_pixels
from prisma_steps.step import Artifact, Blocks, Job, Output, Step, StepError
from prisma_steps.store import DATA, Store, Stored

#: Pixels of files that a dask task reads at once.
_READ_BYTES = 2**26

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
    slots = {
        slot: open_input(store, filled, step.inputs[slot].kind, threads)
        for slot, filled in spec["inputs"].items()
    }
    params = step.params.model_validate(spec["parameters"])
    result = step.function(**slots, params=params, job=job)
    made = partial / "artifact"
    _write(result, made, partial, step, report)
    return made, {"data": datasets.describe(datasets.open_dataset(made / DATA)), "device": job.device_name}


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
    return datasets.combine(parts, axes)


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
