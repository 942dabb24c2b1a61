"""A small experiment that was really run, and its page."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from prisma_steps.plan import Plan, plan_experiment
from prisma_steps.progress import StatusFile
from prisma_steps.publish import publish
from prisma_steps.runner import run_jobs
from prisma_steps.store import Store

#: Two models, trained for a moment; figures of one and of several points; texts that could be markup.
SMALL = r"""
title: "<script>alert('title')</script> & 2 > 1"
description: "<img src=x onerror=alert(1)> {{ 7 * 7 }}"
seed: 0

nodes:
  # Handwritten digits, of which a few are enough.
  images: {step: load_images, dataset: digits, n_images: 120, size: 16}

  vit:
    step: train_vit
    images: images
    n_layers: {grid: [1, 2]}
    seed: {grid: [0, 1]}
    d_model: 8
    n_heads: 2
    d_mlp: 16
    patch_size: 4
    epochs: 2
    batch_size: 32
  # What the deeper one attends to.
  patterns:
    step: extract_activations
    model: {node: vit, select: {n_layers: 2, seed: 0}}
    images: images
    sites: [pattern]
    n_images: 2

  training: {figure: training_curves, model: vit}
  attention: {figure: attention_maps, activations: patterns, images: images, caption: "</figcaption><b>x</b>"}
  accuracy: {figure: table, data: vit, variables: [test_accuracy], best: {test_accuracy: highest}}
  each:
    figure: training_curves
    model: vit
    width: {grid: [one_column, two_columns]}

claims:
  - {says: "it learns <b>nothing</b> in a moment", value: vit.test_accuracy.mean("seed").max(), below: 0.5}
"""


def run(plan: Plan) -> None:
    """Make all that is missing, in this process."""
    for job in plan.missing():
        status = StatusFile(Path(".status") / job.key, log="")
        ((_, outcome),) = run_jobs([job.spec(plan.experiment.name)], plan.store, {job.key: status})
        if isinstance(outcome, Exception):
            raise outcome


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plan]:
    """The small experiment, all of it in the store; the current folder is its folder."""
    folder, before = tmp_path_factory.mktemp("small"), Path.cwd()
    os.chdir(folder)
    Path("small.yaml").write_text(SMALL)
    plan = plan_experiment("small.yaml", Store(Path("artifacts")))
    run(plan)
    yield plan
    os.chdir(before)


@pytest.fixture(scope="session")
def published(small: Plan) -> Path:
    """The page of the small experiment."""
    return publish(small).resolve()
