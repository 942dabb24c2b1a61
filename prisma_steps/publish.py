"""``results/<experiment>/``: the figures, the page that shows them, and readable links to every artifact."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prisma_steps import fingerprint
from prisma_steps.claims.table import row
from prisma_steps.judging import verdicts
from prisma_steps.plan import JobPlan, Plan
from prisma_steps.report.page import FigureEntry, NodeEntry, Page, Provenance, Upstream, render_page
from prisma_steps.store import Stored

FILES = ("png", "pdf", "csv")


def publish(plan: Plan) -> Path:
    """Bring an experiment's results folder up to date with the store; returns its page.

    Figures are copied, so that the folder can be handed on; artifacts are linked.
    """
    plan.refresh()
    page = page_of(plan)
    folder, mark = page.parent, page.with_name(".published")
    shown = _shown(plan)
    if not (page.exists() and mark.exists() and mark.read_text(encoding="utf-8") == shown):
        _publish(plan, folder, page)
        mark.write_text(shown, encoding="utf-8")
    return page


def page_of(plan: Plan) -> Path:
    """Where the page of an experiment is, or will be."""
    return Path("results") / plan.experiment.name / "index.html"


def _shown(plan: Plan) -> str:
    """Digest of all that the folder shows: artifacts never change, so their keys stand for them."""
    here = Path(__file__)
    own = [here, *(file for name in ("report", "claims") for file in sorted((here.parent / name).glob("*")))]
    code = [path.stat().st_mtime_ns for path in own if path.is_file()]
    folder = [str(plan.store.root.resolve()), plan.experiment.text, sorted(plan.present), code]
    return fingerprint.digest(folder)


def _publish(plan: Plan, folder: Path, page: Path) -> None:
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    figures = [_publish_figure(plan, name, job, folder) for name, job in _figures(plan)]
    shown = {Path(path).name for entry in figures for path in (entry.png, entry.pdf, entry.csv)}
    _remove_others(folder / "figures", shown)
    _link_artifacts(plan, folder / "artifacts")
    content = Page(
        title=plan.experiment.title,
        description=plan.experiment.description,
        experiment=plan.experiment.text,
        figures=figures,
        nodes=[_node(plan, name, plan.grids[name].values()) for name in plan.experiment.order],
        date=time.strftime("%Y-%m-%d %H:%M"),
        claims=[row(verdict) for verdict in verdicts(plan)],
    )
    with _replacing(page) as unfinished:
        unfinished.write_text(render_page(content), encoding="utf-8")


def _figures(plan: Plan) -> Iterator[tuple[str, JobPlan]]:
    """Figures in the store with the names of their files, in the order of the experiment file."""
    for name in plan.experiment.order:
        if not plan.experiment.nodes[name].step.is_figure:
            continue
        for job in plan.grids[name].values():
            if job.key in plan.present:
                yield _file_name(name, job.point), job


def _file_name(node: str, point: Mapping[str, Any]) -> str:
    """A node and a point of its grid as a file name."""
    words = [node, *(f"{axis}={value}" for axis, value in point.items())]
    return re.sub(r"[^\w=.+-]", "_", ",".join(words).replace(",", "--"))


def _publish_figure(plan: Plan, name: str, job: JobPlan, folder: Path) -> FigureEntry:
    artifact = plan.store.artifact(job.step, job.key)
    sources = {"png": "figure.png", "pdf": "figure.pdf", "csv": "numbers.csv"}
    for ending, source in sources.items():
        _copy(artifact.folder / source, folder / "figures" / f"{name}.{ending}")
    manifest = artifact.manifest
    provenance = Provenance(
        step=job.step,
        key=job.key,
        parameters=manifest["parameters"],
        upstream=list(_upstream(plan, job)),
        seconds=manifest["seconds"],
        date=manifest["created"],
        versions=manifest["versions"],
    )
    paths = {ending: f"figures/{name}.{ending}" for ending in FILES}
    return FigureEntry(job.title, manifest["data"]["attrs"]["caption"], **paths, provenance=provenance)


def _copy(source: Path, target: Path) -> None:
    if not (target.exists() and filecmp.cmp(source, target, shallow=False)):
        with _replacing(target) as unfinished:
            shutil.copyfile(source, unfinished)


def _upstream(plan: Plan, job: JobPlan) -> Iterator[Upstream]:
    """Everything that a figure rests on, inputs first."""
    found: dict[str, JobPlan] = {}

    def visit(key: str) -> None:
        if key not in found:
            for _, before in plan.jobs[key].producers():
                visit(before)
            found[key] = plan.jobs[key]

    for _, before in job.producers():
        visit(before)
    return (Upstream(other.node, other.step, other.key, other.point) for other in found.values())


def _node(plan: Plan, name: str, jobs: Any) -> NodeEntry:
    keys = list(dict.fromkeys(job.key for job in jobs))
    there = [key for key in keys if key in plan.present]
    step = plan.experiment.nodes[name].step.name
    made = [plan.store.artifact(step, key).manifest for key in there]
    states = {"done": len(there), "missing": len(keys) - len(there)}
    # What was computed together says the time of all of it.
    shares = [manifest["seconds"] / (1 + manifest.get("together_with", 0)) for manifest in made]
    seconds = sum(shares) if made else None
    return NodeEntry(name, step, {state: count for state, count in states.items() if count}, seconds, keys)


def _link_artifacts(plan: Plan, folder: Path) -> None:
    """One symbolic link for each grid point: ``artifacts/<node>`` or ``artifacts/<node>/<point>``."""
    wanted = {}
    for name, grid in plan.grids.items():
        for job in grid.values():
            if job.key in plan.present:
                point = _file_name("", job.point).removeprefix("--")
                wanted[folder / name / point if point else folder / name] = plan.store.artifact(
                    job.step, job.key
                )
    for link in [path for path in folder.rglob("*") if path.is_symlink() and path not in wanted]:
        link.unlink(missing_ok=True)
    for link, artifact in wanted.items():
        _link(link, artifact)


def _link(link: Path, artifact: Stored) -> None:
    target = os.path.relpath(artifact.folder, link.parent)
    if link.is_symlink() and os.readlink(link) == target:
        return
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)
    link.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(link) as unfinished:
        unfinished.symlink_to(target)


def _remove_others(folder: Path, wanted: set[str]) -> None:
    for path in folder.iterdir():
        if path.name not in wanted and not path.name.startswith("."):
            path.unlink(missing_ok=True)


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A name beside ``target`` that takes its place at the end: another run may publish at the same time."""
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    yield unfinished
    unfinished.replace(target)
