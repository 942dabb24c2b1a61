"""What runs again after which change: the real command and the real Snakemake, on edited copies."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xarray as xr
import yaml
from PIL import Image

from prisma_steps import load

if TYPE_CHECKING:
    from conftest import Checkout

BASE, OTHER = "experiments/base.yaml", "experiments/other.yaml"
EXPERIMENT = """\
title: Few small images
seed: 0
nodes:
  seen: {step: load_images, dataset: image_folder, path: ../photos/seen, size: 16}
  unseen: {step: load_images, dataset: image_folder, path: ../photos/unseen, size: 16}
  vit: {step: train_vit, images: seen, n_layers: 1, d_model: 16, n_heads: 2, d_mlp: 32, epochs: 1}
  acts: {step: extract_activations, model: vit, images: seen, sites: [resid_post]}
  sae:
    step: train_sae
    activations: acts
    architecture: relu
    expansion: 2
    learning_rate: 0.001
    l1_coefficient: {grid: [0.1, 0.01]}
  quality: {step: evaluate_sae, sae: sae, model: vit, images: unseen}
  pareto: {figure: sae_pareto, quality: quality}
  curves: {figure: training_curves, model: vit}
"""
SAES = ("sae[0.1]", "sae[0.01]")
QUALITIES = ("quality[0.1]", "quality[0.01]")
ALL = ("seen", "unseen", "vit", "acts", *SAES, *QUALITIES, "pareto", "curves")


def computed(*titles: str) -> dict[str, str]:
    return dict.fromkeys(titles, "computed")


def linked(*titles: str) -> dict[str, str]:
    return dict.fromkeys(titles, "linked")


# --- changes that change nothing


def nothing(_checkout: Checkout) -> None:
    pass


def comments(checkout: Checkout) -> None:
    checkout.edit_modules(lambda source: source.replace("\n\n\n", "\n\n\n# Between.\n") + "# The end.\n")


def docstrings(checkout: Checkout) -> None:
    class Reworded(ast.NodeTransformer):
        def generic_visit(self, node: ast.AST) -> ast.AST:
            super().generic_visit(node)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                rest = node.body if ast.get_docstring(node) is None else node.body[1:]
                node.body = [ast.Expr(ast.Constant("In other words.")), *rest]
            return node

    checkout.edit_modules(lambda source: ast.unparse(Reworded().visit(ast.parse(source))))


def layout(checkout: Checkout) -> None:
    """All line breaks, quotes, parentheses and blank lines as another formatter would have them."""
    checkout.edit_modules(lambda source: ast.unparse(ast.parse(source)))


def import_order(checkout: Checkout) -> None:
    """One name an import, the last first, wherever imports stand together."""

    class Reordered(ast.NodeTransformer):
        def generic_visit(self, node: ast.AST) -> ast.AST:
            super().generic_visit(node)
            if isinstance(body := getattr(node, "body", None), list):
                runs = groupby(body, lambda each: isinstance(each, ast.Import | ast.ImportFrom))
                node.body = [each for imports, run in runs for each in (_turned(run) if imports else run)]
            return node

    checkout.edit_modules(lambda source: ast.unparse(Reordered().visit(ast.parse(source))))


def _turned(imports: Iterable[Any]) -> Iterator[ast.stmt]:
    first_of_all, others = [], []
    for node in imports:
        future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        for name in node.names:
            single = (
                ast.Import([name])
                if isinstance(node, ast.Import)
                else ast.ImportFrom(node.module, [name], node.level)
            )
            (first_of_all if future else others).append(single)
    return iter([*first_of_all, *reversed(others)])


def yaml_order(checkout: Checkout) -> None:
    def turned(value: Any) -> Any:
        return {key: turned(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    text = yaml.safe_dump(turned(yaml.safe_load(EXPERIMENT)), sort_keys=False)
    assert text.index("curves") < text.index("seen:")
    (checkout.folder / BASE).write_text(text)


def number_spelled_otherwise(checkout: Checkout) -> None:
    checkout.edit(BASE, "0.001", "1e-3")
    checkout.edit(BASE, "[0.1, 0.01]", "[1.0e-1, 0.010]")


def defaults_written_out(checkout: Checkout) -> None:
    checkout.edit(BASE, "epochs: 1}", "epochs: 1, weight_decay: 0.01, attention_only: false}")
    checkout.edit(BASE, "{figure: sae_pareto,", "{figure: sae_pareto, token_kind: all, along: null,")


def another_title(checkout: Checkout) -> None:
    checkout.edit(BASE, "title: Few small images", "title: A handful of small images")


def node_renamed(checkout: Checkout) -> None:
    checkout.edit(BASE, "  acts: ", "  read: ")
    checkout.edit(BASE, "activations: acts", "activations: read")


def mtime(checkout: Checkout) -> None:
    os.utime(checkout.folder / PHOTO, (0, 0))


# --- changes of parameters, code and data

PHOTO = "photos/unseen/dark/0.png"


def grid_value(checkout: Checkout) -> None:
    checkout.edit(BASE, "[0.1, 0.01]", "[0.1, 0.03, 0.01]")


def leaf_parameter(checkout: Checkout) -> None:
    checkout.edit(BASE, "model: vit, images: unseen", "model: vit, n_images: 6, images: unseen")


def leaf_parameter_back(checkout: Checkout) -> None:
    checkout.edit(BASE, "n_images: 6, ", "")


def sae_helper(checkout: Checkout) -> None:
    checkout.edit("prisma_steps/sae/training.py", "min(1.0, warmup, decay)", "min(0.5, warmup, decay)")


def refactoring(checkout: Checkout) -> None:
    before = "return settings.learning_rate * (1 + cos(pi * after / max(total - settings.warmup, 1))) / 2"
    cosine = before.removeprefix("return settings.learning_rate * (1 + ").removesuffix(") / 2")
    after = f"    cosine = {cosine}\n    return settings.learning_rate * (1 + cosine) / 2"
    checkout.edit("prisma_steps/models/training.py", f"    {before}", after)


def figure_colours(checkout: Checkout) -> None:
    checkout.edit("prisma_steps/figures/tradeoff.py", "capsize=1.5", 'capsize=1.5, ecolor="red"')


def house_style(checkout: Checkout) -> None:
    checkout.edit("prisma_steps/figures/style.py", '"grid.color": "0.9"', '"grid.color": "0.8"')


def pixel(checkout: Checkout) -> None:
    with Image.open(checkout.folder / PHOTO) as image:
        changed = np.array(image)
    changed[0, 0, 0] ^= 1
    Image.fromarray(changed).save(checkout.folder / PHOTO)


def artifact_removed(checkout: Checkout) -> None:
    [removed] = checkout.command("rm", "experiments/base.yaml/acts", "--yes")["removed"]
    assert not (checkout.folder / "artifacts" / removed).exists()


# --- the table

TABLE = {
    "nothing": [(nothing, {})],
    "comments": [(comments, {})],
    "docstrings": [(docstrings, {})],
    "layout": [(layout, {})],
    "order of imports": [(import_order, {})],
    "order of YAML keys": [(yaml_order, {})],
    "1e-3 for 0.001": [(number_spelled_otherwise, {})],
    "defaults written out": [(defaults_written_out, {})],
    "another title": [(another_title, {})],
    "a node renamed": [(node_renamed, {})],
    "a value added to a grid": [(grid_value, computed("sae[0.03]", "quality[0.03]", "pareto"))],
    "a leaf parameter, and back": [
        (leaf_parameter, computed(*QUALITIES, "pareto")),
        (leaf_parameter_back, {}),
    ],
    "a helper of sae/": [(sae_helper, computed(*SAES, *QUALITIES, "pareto"))],
    "a refactoring": [
        (refactoring, computed("vit") | linked("acts", *SAES, *QUALITIES, "pareto", "curves")),
    ],
    "colours of a figure": [(figure_colours, computed("pareto"))],
    "the colours of all figures": [(house_style, computed("pareto", "curves"))],
    "a pixel of an image file": [(pixel, computed("unseen", *QUALITIES, "pareto"))],
    "mtime of an image file": [(mtime, {})],
    "an artifact removed": [(artifact_removed, computed("acts"))],
}


@pytest.mark.parametrize("changes", TABLE.values(), ids=TABLE)
def test_only_what_changed_runs(
    checkout: Checkout, changes: list[tuple[Callable[[Checkout], None], dict[str, str]]]
) -> None:
    for change, expected in changes:
        change(checkout)
        assert to_run(checkout) == set(expected)
        assert run(checkout) == expected


def test_second_experiment_computes_only_what_is_new(checkout: Checkout) -> None:
    text = EXPERIMENT.replace("  pareto: {figure: sae_pareto", "  l0: {figure: sae_pareto, y: mse")
    (checkout.folder / OTHER).write_text(text.replace("acts", "read").replace("Few small", "The same"))
    assert run(checkout, OTHER) == computed("l0")


def test_of_a_node_in_parts_only_the_part_that_is_gone_is_made_again(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [
        line for line in EXPERIMENT.splitlines() if line.startswith(("nodes", "  seen", "  vit", "  acts"))
    ]
    text = "\n".join(
        [*nodes, nodes[-1].replace("acts", "whole"), "  sae: {step: train_sae, activations: acts}"]
    )
    (checkout.folder / OTHER).write_text(text.replace("sites:", "parts: 3, sites:", 1))
    parts = [f"acts[{i} of 3]" for i in (1, 2, 3)]
    assert run(checkout, OTHER) == computed(*parts, "sae")
    monkeypatch.chdir(checkout.folder)
    # Within what another order of summation does to numbers of size 1: parts are other batches.
    xr.testing.assert_allclose(load(OTHER, "acts"), load(OTHER, "whole"), atol=1e-5)
    key = next(job["key"] for job in checkout.command("plan", OTHER)["jobs"] if title(job) == parts[1])
    [before] = checkout.command("show", f"extract_activations/{key}")
    checkout.command("rm", f"extract_activations/{key}", "--yes")
    assert run(checkout, OTHER) == computed(parts[1])
    [after] = checkout.command("show", f"extract_activations/{key}")
    assert after["digest"] == before["digest"]


def test_flipped_byte_is_named_by_verify_and_repaired_alone(checkout: Checkout) -> None:
    [before] = checkout.command("show", "experiments/base.yaml/acts")
    artifact = f"{before['step']}/{before['key']}"
    chunk = next(name for name in before["files"] if name.startswith("data.zarr/resid_post/c/"))
    flip_byte(checkout.folder / "artifacts" / artifact / chunk)
    verified = checkout.command("verify", code=1)
    assert verified == {"checked": len(ALL), "damaged": {artifact: [chunk]}, "recomputed": []}
    assert run(checkout, BASE, "--repair") == computed("acts")
    assert checkout.command("verify")["damaged"] == {}
    [after] = checkout.command("show", "experiments/base.yaml/acts")
    assert after["digest"] == before["digest"]


def test_plain_snakemake_runs_the_same_jobs(checkout: Checkout) -> None:
    [(change, expected)] = TABLE["a value added to a grid"]
    assert rules_of_plain_snakemake(checkout) == ["all"]
    change(checkout)
    assert rules_of_plain_snakemake(checkout) == ["all", "evaluate_sae", "sae_pareto", "train_sae"]
    assert states_of_last_run(checkout) == expected
    assert run(checkout) == {}


def test_keys_and_bytes_depend_neither_on_the_folder_nor_on_the_hash_seed(
    base: Checkout, fresh_checkout: Callable[..., Checkout], tmp_path: Path
) -> None:
    other = with_experiment(fresh_checkout(tmp_path / "else" / "where", hash_seed=1))
    assert run(other) == computed(*ALL)
    assert digests(other) == digests(base)


@pytest.mark.parametrize(
    ("change", "asked", "expected"),
    [
        (leaf_parameter, "pareto", ("quality", "parameter", "n_images: None → 6")),
        (grid_value, "pareto", ("pareto", "grid", "quality: axis l1_coefficient gains 0.03")),
        (
            sae_helper,
            "quality",
            ("sae", "code", "prisma_steps.sae.training: Trainer._learning_rate_scale changed"),
        ),
        (pixel, "pareto", ("unseen", "outside data", "the content of path changed")),
    ],
    ids=["a leaf parameter", "a value added to a grid", "a helper of sae/", "a pixel of an image file"],
)
def test_why_names_the_cause_and_where_it_lies(
    checkout: Checkout,
    change: Callable[[Checkout], None],
    asked: str,
    expected: tuple[str, str, str],
) -> None:
    change(checkout)
    node, kind, text = expected
    for job in checkout.command("why", BASE, asked):
        assert job["state"] == "missing"
        assert job["differences"] == [{"node": node, "kind": kind, "text": text}]


# --- the ground that changes are made on


@pytest.fixture(scope="module")
def base(fresh_checkout: Callable[..., Checkout], tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which the experiment was run once, from nothing. Not to be changed."""
    checkout = with_experiment(fresh_checkout(tmp_path_factory.mktemp("base")))
    assert run(checkout) == computed(*ALL)
    return checkout


@pytest.fixture
def checkout(base: Checkout, tmp_path: Path) -> Checkout:
    """A copy of ``base`` to change."""
    return base.copy(tmp_path / "copy")


def with_experiment(checkout: Checkout) -> Checkout:
    """Add the experiment and its photographs: noise, dark in one class and light in the other."""
    chance = np.random.default_rng(0)
    for name, count in {"seen": 12, "unseen": 4}.items():
        for kind, low in {"dark": 0, "light": 128}.items():
            folder = checkout.folder / "photos" / name / kind
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = chance.integers(low, low + 128, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    (checkout.folder / "experiments").mkdir()
    (checkout.folder / BASE).write_text(EXPERIMENT)
    return checkout


def run(checkout: Checkout, experiment: str = BASE, *options: str) -> dict[str, str]:
    """Run an experiment; what became of each job that was not in the store, by title."""
    jobs = checkout.command("run", experiment, "--cores", "2", *options)["jobs"]
    return {title(job): job["state"] for job in jobs if job["state"] != "cached"}


def to_run(checkout: Checkout) -> set[str]:
    """What ``run`` would make, by title."""
    jobs = checkout.command("plan", BASE)["jobs"]
    return {title(job) for job in jobs if job["state"] == "missing"}


def title(job: dict[str, Any]) -> str:
    """A job as the table has it: its node, and the values of its grid point."""
    values = ", ".join(map(str, job["point"].values()))
    return f"{job['node']}[{values}]" if values else job["node"]


def rules_of_plain_snakemake(checkout: Checkout) -> list[str]:
    """Rule of each job that Snakemake runs when it is called by itself."""
    done = checkout.python("-m", "snakemake", "--cores", "2", "--config", f"experiment={BASE}")
    assert done.returncode == 0, done.stderr
    return sorted(re.findall(r"^(?:local)?rule (\w+):$", done.stderr, re.MULTILINE))


def states_of_last_run(checkout: Checkout) -> dict[str, str]:
    """What the jobs of the last run left of themselves, by title."""
    titles = {job["key"]: title(job) for job in checkout.command("plan", BASE)["jobs"]}
    last = max((checkout.folder / "results" / "base" / ".runs").iterdir())
    return {titles[file.stem]: json.loads(file.read_text())["state"] for file in last.glob("*/*.json")}


def digests(checkout: Checkout) -> dict[tuple[str, str], str]:
    """Digest of every artifact of the experiment, by title and key."""
    artifacts = checkout.folder / "artifacts"
    return {
        (title(job), job["key"]): json.loads(
            (artifacts / job["step"] / job["key"] / "manifest.json").read_text()
        )["digest"]
        for job in checkout.command("plan", BASE)["jobs"]
    }


def flip_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
