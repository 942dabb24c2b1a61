"""``results/<experiment>/``: the figures, the page that shows them, and readable links to every artifact."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prisma_steps import fingerprint
from prisma_steps.claims.table import row
from prisma_steps.excerpt import excerpt
from prisma_steps.judging import verdicts
from prisma_steps.plan import JobPlan, Plan
from prisma_steps.report.page import FigureEntry, Made, NodeEntry, Page, Provenance, Upstream, render_page
from prisma_steps.store import Stored

#: The files of a figure in its artifact and what their links say, by their endings. A table has the last too.
FILES = {
    "pdf": ("figure.pdf", "PDF"),
    "png": ("figure.png", "PNG"),
    "csv": ("numbers.csv", "Numbers (CSV)"),
    "tex": ("table.tex", "LaTeX"),
}


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
    shown = list(_figures(plan))
    figures = [_publish_figure(plan, name, job, folder) for name, job in shown]
    files = {Path(path).name for entry in figures for path in entry.files.values()}
    _remove_others(folder / "figures", files)
    _link_artifacts(plan, folder)
    nodes = [job.node for _, job in shown]
    content = Page(
        title=plan.experiment.title,
        description=plan.experiment.description,
        experiment=plan.experiment.text,
        figures=figures,
        nodes=[_node(plan, name, nodes) for name in plan.experiment.order],
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
    manifest = artifact.manifest
    files = {}
    for ending, (source, words) in FILES.items():
        if source in manifest["files"]:
            files[words] = f"figures/{name}.{ending}"
            _copy(artifact.folder / source, folder / files[words])
    provenance = Provenance(
        step=job.step,
        key=job.key,
        parameters=manifest["parameters"],
        upstream=_upstream(plan, job),
        seconds=manifest["seconds"],
        date=manifest["created"],
        versions=manifest["versions"],
        experiment=excerpt(plan.experiment.text, _rests_on(plan, job.node)),
    )
    caption = manifest["data"]["attrs"]["caption"]
    return FigureEntry(
        job.title, caption, files["PNG"], {**files, "Artifact": _place(job)}, provenance=provenance
    )


def _copy(source: Path, target: Path) -> None:
    if not (target.exists() and filecmp.cmp(source, target, shallow=False)):
        with _replacing(target) as unfinished:
            shutil.copyfile(source, unfinished)


def _rests_on(plan: Plan, node: str) -> set[str]:
    """A node and all that it is made of, at any distance."""
    inputs = {reference.node for reference in plan.experiment.nodes[node].references.values()}
    return {node}.union(*(_rests_on(plan, name) for name in inputs))


def _upstream(plan: Plan, job: JobPlan) -> list[Upstream]:
    """Everything that a figure rests on, inputs first."""
    found: dict[str, dict[str, JobPlan]] = {}

    def visit(job: JobPlan) -> None:
        for filled in job.inputs.values():
            grid = {other.key: other for other in plan.grids[filled.node].values()}
            for key in filled.keys:
                if key not in found.get(filled.node, ()):
                    visit(grid[key])
                    found.setdefault(filled.node, {})[key] = grid[key]

    visit(job)
    return [
        Upstream(node, plan.experiment.nodes[node].step.name, [_made(plan, other) for other in jobs.values()])
        for node, jobs in found.items()
    ]


def _made(plan: Plan, job: JobPlan) -> Made:
    """An artifact, told in full where it is made of no other: images, or a model from outside."""
    if job.key not in plan.present:
        return Made(job.key, job.point)
    if job.inputs:
        return Made(job.key, job.point, _place(job))
    manifest = plan.store.artifact(job.step, job.key).manifest
    effective = {*job.identity["parameters"], *job.identity.get("outside", ())}
    parameters = {name: value for name, value in manifest["parameters"].items() if name in effective}
    return Made(job.key, job.point, _place(job), manifest["digest"], parameters)


def _place(job: JobPlan) -> str:
    """Where the link to an artifact lies, from the page: ``artifacts/<node>[/<point>]``."""
    return "/".join(filter(None, ["artifacts", job.node, _file_name("", job.point).removeprefix("--")]))


def _node(plan: Plan, name: str, figures: Iterable[str]) -> NodeEntry:
    """A node's entry; ``figures`` are the nodes of the figures of the page, in their order."""
    node = plan.experiment.nodes[name]
    keys = list(dict.fromkeys(job.key for job in plan.grids[name].values()))
    there = [key for key in keys if key in plan.present]
    made = [plan.store.artifact(node.step.name, key).manifest for key in there]
    states = {"done": len(there), "missing": len(keys) - len(there)}
    # What was computed together says the time of all of it.
    shares = [manifest["seconds"] / (1 + manifest.get("together_with", 0)) for manifest in made]
    return NodeEntry(
        name=name,
        step=node.step.name,
        states={state: count for state, count in states.items() if count},
        seconds=sum(shares) if made else None,
        keys=keys,
        inputs=list(dict.fromkeys(reference.node for reference in node.references.values())),
        figures=[i for i, of in enumerate(figures, 1) if of == name] if node.step.is_figure else None,
        folder=f"artifacts/{name}" if there else None,
    )


def _link_artifacts(plan: Plan, folder: Path) -> None:
    """One symbolic link for each grid point: ``artifacts/<node>`` or ``artifacts/<node>/<point>``."""
    wanted = {
        folder / _place(job): plan.store.artifact(job.step, job.key)
        for grid in plan.grids.values()
        for job in grid.values()
        if job.key in plan.present
    }
    links = [path for path in (folder / "artifacts").rglob("*") if path.is_symlink()]
    for link in [path for path in links if path not in wanted]:
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
