"""An excerpt of an experiment file: the lines of some nodes, which still mean the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from prisma_steps.excerpt import excerpt
from prisma_steps.plan import Plan, plan_experiment
from prisma_steps.store import Store

ROOT = Path(__file__).parents[2]

TEXT = """\
# About the file.
title: A
description: >-
  Two lines
  of it.
seed: 3

# All of them.
nodes:
  # The images …
  # … of all.
  images: {step: load_images, dataset: digits}  # small

  # Not asked for.
  other: {step: load_images, dataset: dsprites, n_images: 5}

  vit:
    step: train_vit
    images: images
    # how deep
    n_layers:
      grid: [1, 2]

    epochs: 1
    # and no more
  # Of the next.
  curves: {figure: training_curves, model: vit}
"""

KEPT = """\
seed: 3
# All of them.
nodes:
  # The images …
  # … of all.
  images: {step: load_images, dataset: digits}  # small
  vit:
    step: train_vit
    images: images
    # how deep
    n_layers:
      grid: [1, 2]

    epochs: 1
    # and no more
"""


def planned(text: str, folder: Path) -> Plan:
    file = folder / "x.yaml"
    file.write_text(text)
    return plan_experiment(file, Store(folder / "artifacts"))


def upstream(plan: Plan, name: str) -> set[str]:
    before = {reference.node for reference in plan.experiment.nodes[name].references.values()}
    return {name}.union(*(upstream(plan, node) for node in before))


def test_lines_with_their_comments_and_no_others() -> None:
    assert excerpt(TEXT, {"images", "vit"}) == KEPT


def test_a_file_whose_lines_hold_several_nodes_is_kept_whole() -> None:
    for text in (
        "nodes: {a: {step: load_images, dataset: digits}, b: {step: load_images, dataset: dsprites}}\n",
        "nodes:\n  a: &a {step: load_images, dataset: digits}\n  b: *a\n",
        "{seed: 1, nodes: {\n a: {step: load_images, dataset: digits},\n b: {step: load_images}}}\n",
    ):
        assert excerpt(text, {"b"}) == text


def test_an_anchor_that_is_kept_does_no_harm() -> None:
    text = "nodes:\n  a: &a {step: load_images, dataset: digits}\n  b: *a\n  c: {step: load_images}\n"
    assert excerpt(text, {"a", "b"}) == "".join(text.splitlines(keepends=True)[:3])


@pytest.mark.parametrize("figure", ["training", "attention", "pareto", "l0_by_layer", "patching_map"])
def test_the_excerpt_of_a_figure_plans_the_same_figure(tmp_path: Path, figure: str) -> None:
    whole = planned((ROOT / "experiments/quickstart.yaml").read_text(), tmp_path)
    nodes = upstream(whole, figure)
    part = planned(excerpt(whole.experiment.text, nodes), tmp_path)
    assert set(part.grids) == nodes
    for node in nodes:
        keys = [job.key for job in whole.grids[node].values()]
        assert [job.key for job in part.grids[node].values()] == keys
