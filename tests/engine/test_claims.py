"""Claims from the file to the screen, the page and the exit code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner, Result

from prisma_steps import datasets
from prisma_steps.cli import app
from prisma_steps.command_line import console
from prisma_steps.plan import JobPlan, Plan, plan_experiment
from prisma_steps.publish import publish
from prisma_steps.store import DATA, Store

if TYPE_CHECKING:
    from conftest import Checkout

NODES = """\
nodes:
  images: {step: load_images, dataset: digits}
  vit: {step: train_vit, images: images, n_layers: {grid: [1, 2]}, seed: {grid: [0, 1, 2]}}
"""
CLAIMS = """\
claims:
  - {says: two layers solve it, published: 0.996, source: "a paper, table 3",
     value: vit.test_accuracy.sel(n_layers=2).mean("seed"), within: 0.02}
  - {says: one layer does not, value: vit.test_accuracy.sel(n_layers=1), below: 0.4}
  - {says: the second helps every seed,
     value: vit.test_accuracy.sel(n_layers=2) > vit.test_accuracy.sel(n_layers=1)}
  - {says: nothing of the kind is stored, value: vit.ce_recovered.max(), above: 100}
"""
ACCURACY = {1: [0.5, 0.6, 0.4], 2: [0.98, 0.99, 1.0]}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PRISMA_STEPS_STORE", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    Path("experiments").mkdir()
    Path("experiments/x.yaml").write_text(NODES + CLAIMS)


def planned() -> Plan:
    return plan_experiment("x", Store(Path("artifacts")))


def fill(plan: Plan, jobs: list[JobPlan]) -> None:
    """Artifacts with the accuracy of a job's point."""
    for job in jobs:
        made = plan.store.partial(job.key) / "artifact"
        made.mkdir()
        accuracy = ACCURACY[job.point["n_layers"]][job.point["seed"]] if job.node == "vit" else np.nan
        data = xr.Dataset({"test_accuracy": ((), accuracy)})
        datasets.write(data, made / DATA)
        plan.store.commit(job.step, job.key, made, {"seconds": 1.0, "data": datasets.describe(data)})


@pytest.fixture
def made() -> Plan:
    plan = planned()
    fill(plan, list(plan.jobs.values()))
    plan.refresh()
    return plan


def call(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def listed(*words: str, code: int = 0) -> list[dict[str, Any]]:
    return json.loads(call("claims", "x", *words, "--json", code=code).stdout)["claims"]


@pytest.mark.usefixtures("made")
def test_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "width", 160)
    lines = [re.split(r"\s{2,}", line.strip()) for line in call("claims", "x").stdout.splitlines()]
    expected = "within 0.02 of 0.996"
    assert lines == [
        ["claim", "published", "expected", "reproduced", "over seeds", "verdict"],
        ["two layers solve it", "0.996 (a paper, table 3)", expected, "0.99", "± 0.01, n = 3", "holds"],
        ["one layer does not", "–", "below 0.4", "0.5", "± 0.1, n = 3", "fails"],
        ["the second helps every seed", "–", "true", "true", "true of 3 of 3", "holds"],
        ["nothing of the kind is stored", "–", "above 100", "–", "–", "error"],
        [
            "nothing of the kind is stored: vit has no variable 'ce_recovered'; "
            "expected one of: n_layers, seed, test_accuracy"
        ],
        ["holds: 2, fails: 1, error: 1"],
    ]


@pytest.mark.usefixtures("made")
def test_as_json() -> None:
    first, second, third, fourth = listed()
    assert first["reproduced"] == pytest.approx(0.99)
    assert first["spread"] == pytest.approx(0.01)
    assert first["by_seed"] == {"0": 0.98, "1": 0.99, "2": 1.0}
    assert (first["published"], first["source"]) == (0.996, "a paper, table 3")
    assert [claim["verdict"] for claim in (first, second, third, fourth)] == [
        *("holds", "fails", "holds", "error")
    ]
    assert third["by_seed"] == {"0": True, "1": True, "2": True}
    assert fourth["reason"].startswith("vit has no variable 'ce_recovered'")


@pytest.mark.usefixtures("made")
def test_strict_is_an_exit_code() -> None:
    call("claims", "x", code=0)
    call("claims", "x", "--strict", code=1)
    assert len(listed("--strict", code=1)) == 4
    keep = CLAIMS.split("  - {says: one")[0]
    Path("experiments/x.yaml").write_text(NODES + keep)
    call("claims", "x", "--strict", code=0)


def test_what_has_not_run_is_named() -> None:
    assert {claim["verdict"] for claim in listed()} == {"not yet run"}
    plan = planned()
    fill(plan, [job for job in plan.jobs.values() if job.point != {"n_layers": 1, "seed": 2}])
    (first, *_) = listed("--strict", code=1)
    assert first["reproduced"] is None
    assert first["reason"] == (
        "1 of 6 artifacts of vit are not there yet (vit[n_layers=1, seed=2]): "
        "prisma-steps run experiments/x.yaml"
    )
    assert "not yet run: 4" in (shown := call("claims", "x").stdout)
    assert shown.count("1 of 6 artifacts of vit") == 1, "said once for all of them"


def test_no_claims_and_wrong_ones() -> None:
    Path("experiments/x.yaml").write_text(NODES)
    assert "x claims nothing" in call("claims", "x", "--strict").stdout
    Path("experiments/x.yaml").write_text(NODES + CLAIMS.replace("vit.ce", "vti.ce"))
    told = call("claims", "x", code=2).stderr
    assert "experiments/x.yaml:10:43: claims.3.value: " in told and "did you mean 'vit'?" in told
    assert "there is no node 'vti'" in call("plan", "x", code=2).stderr, "before anything runs"


def test_an_artifact_that_is_damaged_is_the_verdict(made: Plan) -> None:
    job = made.grids["vit"][0, 0]
    (made.store.artifact(job.step, job.key).folder / DATA / "zarr.json").write_text("{}")
    first, *_ = listed()
    assert first["verdict"] == "error" and first["reason"].startswith("artifacts cannot be read: ")


def test_claims_are_in_no_key(made: Plan) -> None:
    before = {node: [job.key for job in grid.values()] for node, grid in made.grids.items()}
    for claims in (
        "",
        CLAIMS.replace("below: 0.4", "above: 0.4"),
        CLAIMS.replace("n_layers=2", "n_layers=1"),
    ):
        Path("experiments/x.yaml").write_text(NODES + claims)
        plan = planned()
        assert {node: [job.key for job in grid.values()] for node, grid in plan.grids.items()} == before
        assert not plan.missing()


def test_the_page_shows_them_and_follows_them(made: Plan) -> None:
    page = publish(made)
    text = page.read_text(encoding="utf-8")
    assert text.count('<strong class="failed">fails</strong>') == 1
    assert text.count('<strong class="done">holds</strong>') == 2
    assert text.count('<strong class="failed">error</strong>') == 1
    for shown in ("two layers solve it", "a paper, table 3", "± 0.01, n = 3", "within 0.02 of 0.996"):
        assert shown in text
    Path("experiments/x.yaml").write_text(NODES + CLAIMS.replace("below: 0.4", "below: 0.6"))
    assert '<strong class="failed">fails</strong>' not in publish(planned()).read_text(encoding="utf-8")
    Path("experiments/x.yaml").write_text(NODES)
    assert 'id="claims"' not in publish(planned()).read_text(encoding="utf-8")


TINY = """\
nodes:
  digits: {step: load_images, dataset: digits, n_images: 60}
  vit: {step: train_vit, images: digits, n_layers: 1, d_model: 8, n_heads: 1, patch_size: 4, epochs: 1,
        attention_only: true, batch_size: 20, seed: {grid: [0, 1]}}
claims:
  - {says: it is a share, value: vit.test_accuracy, between: [0, 1]}
  - {says: its images are the digits, value: digits.pixels.mean().round_, above: 0}
"""


def test_from_a_run_to_a_verdict_without_torch(
    fresh_checkout: Callable[[Path], Checkout], tmp_path: Path
) -> None:
    checkout = fresh_checkout(tmp_path / "checkout")
    file = checkout.folder / "experiments/tiny.yaml"
    file.parent.mkdir()
    file.write_text(TINY)
    refused = checkout.command("run", "tiny", code=2)
    assert refused["problems"][0]["what"].startswith("digits.pixels.mean().round_: .round_ is nothing")
    file.write_text(TINY.replace(".round_", ""))
    assert {job["state"] for job in checkout.command("run", "tiny")["jobs"]} == {"computed"}
    first, second = checkout.command("claims", "tiny", "--strict")["claims"]
    accuracies = list(first["by_seed"].values())
    assert first["reproduced"] == pytest.approx(sum(accuracies) / 2) and len(accuracies) == 2
    assert (second["verdict"], second["by_seed"]) == ("holds", {})
    assert "it is a share" in (checkout.folder / "results/tiny/index.html").read_text(encoding="utf-8")
    file.write_text(TINY.replace(".round_", "").replace("between: [0, 1]", "above: 1"))
    assert {job["state"] for job in checkout.command("run", "tiny")["jobs"]} == {"cached"}
    assert checkout.command("claims", "tiny", "--strict", code=1)["claims"][0]["verdict"] == "fails"
    without = "import sys; sys.modules['torch'] = None; from prisma_steps.cli import main; main()"
    assert checkout.python("-c", without, "claims", "tiny").returncode == 0
