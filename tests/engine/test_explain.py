"""What is named as the cause, and how fast, in a store of manifests without data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prisma_steps import fingerprint
from prisma_steps.explain import Difference, Explainer
from prisma_steps.plan import Plan, plan_experiment
from prisma_steps.step import all_steps
from prisma_steps.store import Store

NODES = """\
  images: {step: load_images, dataset: digits}
  vit: {step: train_vit, images: images, learning_rate: 0.001, seed: {grid: [0, 1, 2, 3]}}
  acts: {step: extract_activations, model: vit, images: images, sites: [resid_post]}
  sae: {step: train_sae, activations: acts, k: {grid: [4, 8]}}
  quality: {step: evaluate_sae, sae: sae, model: vit, images: images}
  pareto: {figure: sae_pareto, quality: quality}
"""


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def plan(nodes: str) -> Plan:
    Path("x.yaml").write_text(f"nodes:\n{nodes}")
    return plan_experiment("x.yaml", Store(Path("artifacts")))


def make(planned: Plan, created: str = "2026-01-01T00:00:00Z") -> None:
    """Leave the manifest of every job that is missing."""
    for job in planned.missing():
        folder = planned.store.root / job.step / job.key
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({**job.spec("x"), "created": created}))
        step = all_steps()[job.step]
        planned.store.save_code(job.identity["code"], lambda step=step: fingerprint.code_definitions(step))


def causes(nodes: str, node: str) -> list[list[Difference]]:
    planned = plan(nodes)
    explainer = Explainer(planned)
    return [explainer.why(job) for job in planned.grids[node].values()]


@pytest.mark.parametrize(
    ("before", "after", "text"), [(2, 3, "parts: 2 → 3"), (1, 3, "parts = 3, was not a parameter")]
)
@pytest.mark.parametrize("asked", ["acts", "sae", "pareto"])
def test_another_number_of_parts_is_named_once(before: int, after: int, text: str, asked: str) -> None:
    parts = NODES.replace("sites: [", "parts: {}, sites: [")
    make(plan(parts.replace("{}", str(before), 1)))
    now = causes(parts.replace("{}", str(after), 1), asked)
    assert {tuple(at_point) for at_point in now} == {(Difference("acts", "parameter", text),)}


@pytest.mark.parametrize("asked", ["vit", "acts", "sae", "quality", "pareto"])
def test_a_parameter_of_a_gridded_input_is_named_once_at_every_point(asked: str) -> None:
    make(plan(NODES))
    now = causes(NODES.replace("0.001", "0.002"), asked)
    assert {tuple(at_point) for at_point in now} == {
        (Difference("vit", "parameter", "learning_rate: 0.001 → 0.002"),)
    }


def test_of_several_artifacts_alike_the_newest_is_compared_with() -> None:
    make(plan(NODES.replace("0.001", "0.004")), "2026-01-01T00:00:00Z")
    make(plan(NODES.replace("0.001", "0.003")), "2026-01-03T00:00:00Z")
    make(plan(NODES.replace("0.001", "0.005")), "2026-01-02T00:00:00Z")
    [now] = causes(NODES, "pareto")
    assert now == [Difference("vit", "parameter", "learning_rate: 0.003 → 0.001")]


def test_a_value_that_left_a_grid_and_one_that_came_are_named() -> None:
    make(plan(NODES))
    [now] = causes(NODES.replace("[4, 8]", "[4, 16]"), "pareto")
    assert Difference("pareto", "grid", "quality: axis k gains 16 and loses 8") in now


def test_a_first_artifact_is_like_nothing() -> None:
    [[only]] = causes(NODES, "images")
    assert (only.node, only.kind) == ("images", "new")


def test_each_manifest_is_read_once_to_explain_a_large_grid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = NODES.replace("[0, 1, 2, 3]", str(list(range(100))))
    make(plan(large))
    reads = []
    read_text = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, **how: reads.append(path) or read_text(path, **how))
    assert len(causes(large.replace("0.001", "0.002"), "pareto")[0]) == 1
    manifests = [path for path in reads if path.name == "manifest.json"]
    assert len(manifests) == len(set(manifests))
