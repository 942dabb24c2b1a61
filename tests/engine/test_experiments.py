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


def test_mice_vits_are_the_eight_published_cells_at_the_published_schedule(tmp_path: Path) -> None:
    plan = plan_experiment(EXPERIMENTS / "mice_vits_dsprites.yaml", Store(tmp_path))
    cells = [job.parameters for job in plan.jobs.values() if job.step == "train_vit"]
    assert len(cells) == 8 * 3
    assert {(cell["n_layers"], cell["attention_only"]) for cell in cells} == {
        (layers, kind) for layers in (1, 2, 3, 4) for kind in (False, True)
    }
    published = {
        **{"d_model": 512, "n_heads": 8, "d_mlp": 2048, "patch_size": 8, "layer_norm": False},
        **{"learning_rate": 1e-4, "weight_decay": 0.01, "batch_size": 512, "gradient_clip": 1.0},
        **{"warmup": 10, "schedule": "step", "step_size": 200, "gamma": 0.8},
        **{"epochs": 10, "early_stopping_patience": 3},
    }
    assert all(cell.items() >= published.items() for cell in cells)
    held_out = {cell["test_fraction"] + cell["validation_fraction"] for cell in cells}
    assert held_out == {0.25} and 737_280 * (1 - 0.25) == 552_960
