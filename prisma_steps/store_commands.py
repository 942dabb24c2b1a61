"""The part of the command that looks after the store: show, verify, gc, rm; and the schema for editors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from rich.tree import Tree

from prisma_steps.axes import PART
from prisma_steps.command_line import (
    DEFAULT_STORE,
    FAILED,
    OK,
    AsJson,
    StoreRoot,
    Yes,
    console,
    errors,
    fail,
    human,
    mistakes,
    planned,
)
from prisma_steps.problems import nearest
from prisma_steps.store import Store, Stored

if TYPE_CHECKING:
    from prisma_steps.plan import Plan

EXPERIMENTS = Path("experiments")

What = Annotated[
    str,
    typer.Argument(
        metavar="ARTIFACT|NODE",
        help="A key or its first digits, step/key, experiment/node, a node, or an artifact's folder.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the app."""
    for command in (show, verify, gc, rm, schema):
        app.command()(command)


def find(what: str, store: Store, as_json: bool) -> list[Stored]:
    """The artifacts that a user means; leaves with a message when there are none."""
    if Path(what).is_dir() and (Path(what) / "manifest.json").exists():
        folder = Path(what).resolve()
        return [Stored(folder.parent.name, folder.name, folder)]
    if re.fullmatch(r"(\w+/)?[0-9a-f]{4,16}", what) and (found := store.find(what)):
        return found
    experiment, _, node = what.rpartition("/")
    plan = planned(experiment, store.root, as_json) if experiment else _experiment_with(node, store, as_json)
    if plan is None or node not in plan.grids:
        nodes = list(plan.grids) if plan is not None else []
        fail(f"there is no artifact or node {what!r}; {nearest(node, nodes)}".rstrip("; "), as_json)
    keys = dict.fromkeys(job.key for job in plan.grids[node].values())
    found = [store.artifact(plan.jobs[key].step, key) for key in keys if key in plan.present]
    if not found:
        fail(f"no artifact of {what} has been made yet: prisma-steps run {plan.experiment.file}", as_json)
    return found


def _experiment_with(node: str, store: Store, as_json: bool) -> Plan | None:
    from prisma_steps.maintenance import plans_in

    with mistakes(as_json):
        having = [plan for plan in plans_in(EXPERIMENTS, store) if node in plan.grids]
    if len(having) > 1:
        names = ", ".join(f"{plan.experiment.name}/{node}" for plan in having)
        fail(f"several experiments have a node {node!r}: say {names}", as_json)
    return having[0] if having else None


def show(what: What, store: StoreRoot = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Show what an artifact is and holds, and everything that it was made from."""
    where = Store(store)
    found = find(what, where, as_json)
    if as_json:
        typer.echo(json.dumps([artifact.manifest for artifact in found], ensure_ascii=False))
    elif len(found) == 1:
        _show_one(found[0], where)
    else:
        _show_many(found)


def _show_one(artifact: Stored, store: Store) -> None:
    manifest = artifact.manifest
    facts = Table(box=None, show_header=False, padding=(0, 1))
    how = f"linked from {manifest['linked_from']}" if "linked_from" in manifest else "computed"
    versions = ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())
    for name, value in {
        "artifact": artifact,
        "title": f"{manifest['title']} of {manifest['experiment']}",
        "made": f"{manifest['created']} on {manifest['host']} ({manifest['device']}), {how}",
        "cost": f"{manifest['seconds']} s, peak memory {human(manifest['peak_memory'])}{_company(manifest)}",
        "digest": manifest["digest"],
        "git": manifest["git"] or "–",
        "versions": versions,
        "parameters": ", ".join(f"{name} = {value}" for name, value in manifest["parameters"].items()),
        "dims": _dims(manifest["data"]["dims"]),
        "variables": _variables(manifest["data"]["variables"]),
        "files": ", ".join(sorted(name for name in manifest["files"] if not name.startswith("data.zarr/")))
        or "–",
        "size": human(sum(entry["size"] for entry in manifest["files"].values())),
        "folder": artifact.folder,
    }.items():
        facts.add_row(f"[bold]{name}[/bold]", escape(str(value)))
    console.print(facts)
    tree = Tree("[bold]made from[/bold]")
    _grow(tree, manifest, store)
    console.print(tree)


def _company(manifest: Mapping[str, Any]) -> str:
    others = manifest.get("together_with", 0)
    return f", together with {others} other{'s' if others > 1 else ''}" if others else ""


def _variables(variables: Mapping[str, Any]) -> str:
    return "\n".join(
        f"{name}({', '.join(entry['dims'])}) {entry['dtype']}" for name, entry in variables.items()
    )


def _grow(tree: Tree, manifest: Mapping[str, Any], store: Store) -> None:
    """Hang an artifact's inputs below ``tree``, and theirs below them."""
    for slot, filled in manifest["inputs"].items():
        for key in filled["keys"][:8]:
            name = f"{slot}: {filled['step']}/{key}"
            if not store.has(filled["step"], key):
                tree.add(f"{escape(name)} [red](no longer in the store)[/red]")
                continue
            inner = store.artifact(filled["step"], key).manifest
            _grow(tree.add(escape(f"{name}  {inner['title']}")), inner, store)
        if len(filled["keys"]) > 8:
            tree.add(f"{slot}: and {len(filled['keys']) - 8} more")


def _show_many(found: list[Stored]) -> None:
    table = Table(box=None, padding=(0, 1))
    for name in ("artifact", "title", "made", "seconds", "dims"):
        table.add_column(name, no_wrap=name == "artifact", overflow="fold")
    for artifact in found:
        manifest = artifact.manifest
        dims = _dims(manifest["data"]["dims"])
        row = (str(artifact), manifest["title"], manifest["created"], str(manifest["seconds"]), dims)
        table.add_row(*map(escape, row))
    console.print(table)
    for whole in _wholes(found):
        console.print(whole, soft_wrap=True)


def _dims(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{dim}: {size}" for dim, size in sizes.items())


def _wholes(found: list[Stored]) -> Iterator[str]:
    """A line for each Dataset that is stored in parts."""
    wholes: dict[str, list[Mapping[str, Any]]] = {}
    for manifest in (artifact.manifest for artifact in found if PART in artifact.manifest["point"]):
        place = {name: value for name, value in manifest["point"].items() if name != PART}
        wholes.setdefault(", ".join(f"{name}={value}" for name, value in place.items()), []).append(manifest)
    for place, manifests in wholes.items():
        of, dims = manifests[0]["parameters"]["parts"], dict(manifests[0]["data"]["dims"])
        dims["image"] = sum(manifest["data"]["dims"]["image"] for manifest in manifests)
        title = manifests[0]["node"] + (f"[{place}]" if place else "")
        yield escape(f"{title}: {len(manifests)} of {of} parts, read as one: {_dims(dims)}")


def verify(
    experiment: Annotated[
        str | None, typer.Argument(help="Only this experiment's artifacts (default: all).")
    ] = None,
    recompute: Annotated[int, typer.Option(help="Also run this many jobs again and compare.", min=0)] = 0,
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Re-hash every file of every artifact; with --recompute, also run jobs again and compare digests."""
    from prisma_steps import maintenance

    where = Store(store)
    plans = (
        [planned(experiment, store, as_json)]
        if experiment
        else _all_plans(where, as_json)
        if recompute
        else []
    )
    artifacts = maintenance.artifacts_of(plans[0]) if experiment else list(where)
    with Progress(console=errors, transient=True, disable=as_json or not errors.is_terminal) as progress:
        checking = progress.add_task("checking", total=len(artifacts))
        bad = maintenance.damaged(artifacts, lambda _: progress.advance(checking))
    again = [] if not recompute else _recompute(plans, recompute)
    different = [entry for entry in again if not entry.same]
    if as_json:
        damage = {str(entry.artifact): entry.files for entry in bad}
        rerun = [{"title": e.job.title, "key": e.job.key, "same": e.same} for e in again]
        typer.echo(json.dumps({"checked": len(artifacts), "damaged": damage, "recomputed": rerun}))
    else:
        for entry in bad:
            errors.print(f"[bold red]damaged[/bold red] {entry.artifact}: {escape(', '.join(entry.files))}")
        for entry in again:
            word = (
                "the same digest" if entry.same else f"[bold red]another digest[/bold red] ({entry.now[:16]})"
            )
            console.print(f"recomputed {escape(entry.job.title)}: {word}")
        console.print(f"{len(artifacts)} artifacts checked, {len(bad)} damaged")
        if bad:
            console.print("prisma-steps run EXPERIMENT --repair makes damaged artifacts again")
    raise typer.Exit(FAILED if bad or different else OK)


def _all_plans(store: Store, as_json: bool) -> list[Plan]:
    from prisma_steps.maintenance import plans_in

    with mistakes(as_json):
        return plans_in(EXPERIMENTS, store)


def _recompute(plans: list[Plan], count: int) -> list[Any]:
    from prisma_steps import maintenance

    pool = max(plans, key=lambda plan: len(plan.present), default=None)
    return [] if pool is None else maintenance.recompute(pool, count)


def gc(
    experiments: Annotated[
        list[Path] | None,
        typer.Option(help="Folders of experiments whose artifacts are kept (default: experiments)."),
    ] = None,
    store: StoreRoot = DEFAULT_STORE,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Remove the artifacts that no experiment reaches, after showing them."""
    from prisma_steps import maintenance

    where = Store(store)
    folders = experiments or [EXPERIMENTS]
    for folder in folders:
        if not folder.is_dir():
            fail(f"there is no folder {folder}: gc would take every artifact for unneeded", as_json)
    with mistakes(as_json):
        plans = [plan for folder in folders for plan in maintenance.plans_in(folder, where)]
    found = maintenance.garbage(where, plans)
    if not as_json:
        for artifact in found.artifacts:
            console.print(
                f"{artifact}  {escape(artifact.manifest['title'])} of {artifact.manifest['experiment']}"
            )
        unfinished = f" and {len(found.partial)} unfinished" if found.partial else ""
        console.print(
            f"{len(found.artifacts)} artifacts{unfinished} that no experiment reaches, {human(found.bytes)}"
        )
    removed = bool(found.artifacts or found.partial) and _confirmed(yes, as_json)
    if removed:
        maintenance.collect(where, found)
    if as_json:
        names = [str(artifact) for artifact in found.artifacts]
        typer.echo(json.dumps({"artifacts": names, "bytes": found.bytes, "removed": removed}))


def rm(what: What, store: StoreRoot = DEFAULT_STORE, yes: Yes = False, as_json: AsJson = False) -> None:
    """Remove artifacts from the store; the next run that needs them makes them again."""
    where = Store(store)
    found = find(what, where, as_json)
    keys = {artifact.key for artifact in found}
    readers = [other for other in where if other.key not in keys and keys & set(_inputs(other))]
    if not as_json:
        for artifact in found:
            console.print(f"{artifact}  {escape(artifact.manifest['title'])}")
        if readers:
            console.print(f"{len(readers)} artifacts were made from these; they stay as they are")
    if _confirmed(yes, as_json):
        for artifact in found:
            where.remove(artifact)
        if as_json:
            typer.echo(json.dumps({"removed": [str(artifact) for artifact in found]}))


def _inputs(artifact: Stored) -> Iterator[str]:
    return (key for filled in artifact.manifest["inputs"].values() for key in filled["keys"])


def _confirmed(yes: bool, as_json: bool) -> bool:
    if as_json and not yes:
        return False
    return yes or typer.confirm("remove?")


def schema(
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of the screen.")] = None,
) -> None:
    """Print the JSON schema of experiment files, for editors."""
    from prisma_steps.json_schema import experiment_schema

    text = json.dumps(experiment_schema(), indent=2) + "\n"
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")
