from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from prisma_steps import datasets, fingerprint
from prisma_steps.cli import app
from prisma_steps.plan import plan_experiment
from prisma_steps.step import all_steps
from prisma_steps.store import DATA, Store

NODES = """nodes:
  images: {step: load_images, dataset: digits}
  vit: {step: train_vit, images: images, n_layers: {grid: [1, 2]}}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment of three jobs, nothing made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PRISMA_STEPS_STORE", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    Path("experiments").mkdir()
    Path("experiments/x.yaml").write_text(NODES)


@pytest.fixture
def made() -> Store:
    """As if the experiment had been run."""
    import xarray as xr

    plan = plan_experiment("x", Store(Path("artifacts")))
    for job in plan.jobs.values():
        made = plan.store.partial(job.key) / "artifact"
        made.mkdir()
        data = xr.Dataset({"a": ("image", [1, 2])})
        datasets.write(data, made / DATA)
        code = job.identity["code"]
        plan.store.save_code(code, lambda job=job: fingerprint.code_definitions(all_steps()[job.step]))
        facts = {
            "created": "2026-01-01T00:00:00Z",
            "host": "here",
            "device": "x86_64",
            "seconds": 1.5,
            "peak_memory": 5_000_000,
            "git": None,
            "versions": {"torch": "2"},
            "data": datasets.describe(data),
            "computation": f"c{job.key}",
        }
        plan.store.commit(job.step, job.key, made, {**job.spec("x"), **facts})
    return plan.store


def call(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def listed(*words: str, code: int = 0) -> Any:
    return json.loads(call(*words, "--json", code=code).stdout)


def test_help_names_every_command_and_its_purpose() -> None:
    text = call("--help").stdout
    for command in ("run", "plan", "why", "status", "claims", "show", "verify", "gc", "rm", "schema"):
        assert re.search(rf"^│ {command}\s+\w", text, re.MULTILINE), command
        assert "Usage: " in call(command, "--help").stdout


def test_plan_of_nothing_made() -> None:
    assert [job["state"] for job in listed("plan", "x")["jobs"]] == ["missing"] * 3
    assert "3 of 3 jobs to run" in call("plan", "experiments/x.yaml").stdout
    assert not Path("artifacts").exists(), "planning writes nothing"


@pytest.mark.usefixtures("made")
def test_plan_of_what_is_made_and_of_what_changed() -> None:
    assert "0 of 3 jobs to run" in call("plan", "x").stdout
    Path("experiments/x.yaml").write_text(NODES.replace("[1, 2]", "[1, 3]"))
    assert "1 of 3 jobs to run" in call("plan", "x").stdout
    jobs = listed("plan", "x")["jobs"]
    assert [(job["point"], job["state"]) for job in jobs if job["node"] == "vit"] == [
        ({"n_layers": 1}, "cached"),
        ({"n_layers": 3}, "missing"),
    ]


@pytest.mark.usefixtures("made")
def test_why() -> None:
    Path("experiments/x.yaml").write_text(NODES.replace("dataset: digits", "dataset: digits, seed: 4"))
    assert "seed: 0 → 4" in call("why", "x", "vit").stdout
    differences = [job["differences"] for job in listed("why", "x", "vit")]
    assert all(entry[0]["node"] == "images" and entry[0]["kind"] == "parameter" for entry in differences)


def test_status() -> None:
    assert {job["state"] for job in listed("status", "x")["jobs"]} == {"missing"}
    key = listed("plan", "x")["jobs"][0]["key"]
    with Store(Path("artifacts")).lock(key, pytest.fail):
        assert [job["state"] for job in listed("status", "x")["jobs"]] == ["being made", "missing", "missing"]
        assert "images is being made by " in call("status", "x").stdout


def test_show_by_key_by_node_and_by_folder(made: Store) -> None:
    artifact = next(found for found in made if found.step == "load_images")
    for name in (artifact.key[:6], str(artifact), "x/images", "images", str(artifact.folder)):
        (manifest,) = listed("show", name)
        assert manifest["key"] == artifact.key
    assert "made from" in call("show", artifact.key).stdout
    assert len(listed("show", "x/vit")) == 2
    assert "vit[n_layers=2]" in call("show", "x/vit").stdout


def test_verify(made: Store) -> None:
    assert listed("verify") == {"checked": 3, "damaged": {}, "recomputed": []}
    artifact = next(iter(made))
    (artifact.folder / "extra").touch()
    assert listed("verify", "x", code=1)["damaged"] == {str(artifact): ["extra"]}
    shown = call("verify", code=1)
    assert "1 damaged" in shown.stdout
    assert f"{artifact}: extra" in shown.stderr


def test_gc_asks_first_and_keeps_what_is_needed(made: Store) -> None:
    Path("experiments/x.yaml").write_text(NODES.replace("[1, 2]", "[1]"))
    assert CliRunner().invoke(app, ["gc"], input="n\n").exit_code == 0
    assert listed("gc")["removed"] is False, "nobody was asked"
    assert len(list(made)) == 3
    found = listed("gc", "--yes")
    assert found["removed"] is True
    assert len(found["artifacts"]) == 1
    assert len(list(made)) == 2


def test_gc_takes_nothing_when_an_experiment_cannot_be_read(made: Store) -> None:
    Path("experiments/broken.yaml").write_text("nodes: 3")
    assert "broken.yaml" in listed("gc", "--yes", code=2)["error"]
    assert "no folder elsewhere" in listed("gc", "--experiments", "elsewhere", "--yes", code=2)["error"]
    assert len(list(made)) == 3


def test_rm(made: Store) -> None:
    assert (
        "2 artifacts were made from these" in CliRunner().invoke(app, ["rm", "x/images"], input="n\n").stdout
    )
    assert len(listed("rm", "x/vit", "--yes")["removed"]) == 2
    assert [found.step for found in made] == ["load_images"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("plan", "y"), "did you mean|expected one of: x"),
        (("why", "x", "vits"), r"x has no node 'vits'; did you mean 'vit'\?"),
        (("show", "x/image"), r"no artifact or node 'x/image'; did you mean 'images'\?"),
        (("show", "x/vit"), "no artifact of x/vit has been made yet: prisma-steps run experiments/x.yaml"),
        (("show", "nothing"), "there is no artifact or node 'nothing'"),
        (("rm", "0123"), "there is no artifact or node '0123'"),
    ],
)
def test_a_mistake_in_the_command_is_told_with_exit_code_2(words: tuple[str, ...], message: str) -> None:
    assert re.search(message, call(*words, code=2).stderr.replace("\n", " "))
    assert re.search(message, listed(*words, code=2)["error"].replace("\n", " "))


@pytest.mark.parametrize(
    "words", [("rum", "x"), ("plan",), ("plan", "x", "--jsn"), ("run", "x", "--cores", "0")]
)
def test_wrong_usage_is_exit_code_2(words: tuple[str, ...]) -> None:
    call(*words, code=2)


@pytest.mark.usefixtures("made")
def test_an_option_names_another_store(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "3 of 3 jobs to run" in call("plan", "x", "--store", "elsewhere").stdout
    Path("artifacts").rename("elsewhere")
    assert "0 of 3 jobs to run" in call("plan", "x", "--store", "elsewhere").stdout
    monkeypatch.setenv("PRISMA_STEPS_STORE", "elsewhere")
    assert "0 of 3 jobs to run" in call("plan", "x").stdout
