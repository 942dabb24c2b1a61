"""The experiments that come along can be planned."""

from __future__ import annotations

import shutil
from pathlib import Path

from prisma_steps.maintenance import plans_in
from prisma_steps.plan import plan_experiment
from prisma_steps.store import Store

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def test_those_that_gc_looks_at_need_nothing_that_is_not_there(tmp_path: Path) -> None:
    """One that cannot be planned would keep gc from working for everybody."""
    plans = plans_in(EXPERIMENTS, Store(tmp_path))
    assert {plan.experiment.name for plan in plans} == {file.stem for file in EXPERIMENTS.glob("*.yaml")}


def test_that_of_the_focus_vit_needs_its_two_folders_and_no_more(tmp_path: Path) -> None:
    file = tmp_path / "experiments/pretrained/focus_vit_probe.yaml"
    file.parent.mkdir(parents=True)
    shutil.copy(EXPERIMENTS / "pretrained/focus_vit_probe.yaml", file)
    for needed in ("data/cifar10/train/cat/1.jpg", "build/focus_vit_s/config.json"):
        (tmp_path / needed).parent.mkdir(parents=True)
        (tmp_path / needed).touch()
    jobs = plan_experiment(file, Store(tmp_path / "store")).jobs.values()
    assert [(job.node, job.step) for job in jobs] == [
        ("photographs", "load_images"),
        ("vit", "load_model"),
        ("probe", "train_probe"),
    ]
