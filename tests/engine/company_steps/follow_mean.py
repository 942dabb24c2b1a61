"""A step of the tests' own: a number that follows the means of images, for several rates in one reading."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prisma_steps.job import Job, Member
from prisma_steps.schema import Images, Kind
from prisma_steps.step import Field, StepError, StepParams, step

if TYPE_CHECKING:
    import xarray as xr

Path = Kind("path", frozenset({"step"}), required={"loss": ("step",)})


class Params(StepParams):
    """How fast it follows, and how long that takes."""

    rate: float = Field(
        0.5, description="share of the way to the next mean", json_schema_extra={"may_differ": True}
    )
    start: float = Field(0.0, description="where it starts")
    pause: float = Field(0.0, description="seconds after each image", json_schema_extra={"not_in_key": True})
    pause_between: float = Field(
        0.0, description="seconds between two results", json_schema_extra={"not_in_key": True}
    )


def follow_together(
    images: xr.Dataset, members: Sequence[Member[Params]]
) -> Iterator[xr.Dataset | StepError]:
    """Read the images once; members that are further already skip what they have seen."""
    if any(member.params.rate > 1 for member in members):
        raise StepError("a rate above 1 overshoots")
    means = images["pixels"].astype(float).mean(("channel", "row", "column")).values.tolist()
    paths = [(member.job.checkpoint.load() or {"path": []})["path"] for member in members]
    print(f"read {len(means)} images for {len(members)}, going on from {sorted(map(len, paths))}")  # noqa: T201
    for number, mean in enumerate(means):
        for member, path in zip(members, paths, strict=True):
            if len(path) == number:
                last = path[-1] if path else member.params.start
                path.append(last + member.params.rate * (mean - last))
            if member.job.checkpoint.due():
                member.job.checkpoint.save({"path": path})
            member.job.progress(len(path), len(means))
        time.sleep(members[0].params.pause)
    for member, path in zip(members, paths, strict=True):
        yield _result(path) if member.params.rate else StepError("rate is 0: it would follow nothing")
        time.sleep(members[0].params.pause_between)


def _result(path: list[float]) -> xr.Dataset:
    import xarray as xr

    return xr.Dataset({"loss": ("step", path)})


@step(inputs={"images": Images}, output=Path, together=follow_together)
def follow_mean(images: xr.Dataset, params: Params, job: Job) -> xr.Dataset:
    """Follow the means of the images, one after the other."""
    (result,) = follow_together(images, [Member(params, job)])
    if isinstance(result, StepError):
        raise result
    return result
