"""Points of a grid that are computed together: who is; and real runs that fail, are killed, or meet."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import xarray as xr

from prisma_steps import company, node
from prisma_steps.job import Job
from prisma_steps.plan import JobPlan, Plan, plan_experiment
from prisma_steps.schema import Images
from prisma_steps.step import Field, StepParams, all_steps, step
from prisma_steps.steps import train_vit
from prisma_steps.store import Store
from tests.engine.fault_session import Going, Study, leaving_nobody, wait_for

if TYPE_CHECKING:
    from conftest import Checkout

HERE = Path(__file__).parent
#: What a mistake that shows only in a run ends with: the nodes of its inputs.
INPUTS = "(inputs: images is the node images)"

# --- who is computed together


class Params(train_vit.Params):
    """Those of a step of the package, two of them marked."""

    seed: int = Field(0, json_schema_extra={"may_differ": True})
    learning_rate: float = Field(1e-3, json_schema_extra={"may_differ": True})


def never(images: xr.Dataset, members: Sequence[Any]) -> list[Any]:
    raise AssertionError(f"called with {images} and {members}")


@pytest.fixture
def marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points of ``train_vit`` may differ in seed and learning rate."""
    monkeypatch.chdir(tmp_path)
    declared = replace(all_steps()["train_vit"], params=Params, together=never)
    monkeypatch.setattr(node, "all_steps", lambda: {**all_steps(), "train_vit": declared})


def plan(vit: str, others: str = "") -> Plan:
    images = "  images: {step: load_images, dataset: dsprites, n_images: 5, skip: {grid: [0, 5]}}\n"
    text = f"nodes:\n{images}  vit: {{step: train_vit, images: {{node: images, select: {{skip: 0}}}}{vit}}}\n"
    Path("x.yaml").write_text(text + others)
    return plan_experiment("x.yaml", Store(Path("artifacts")))


def make(planned: Plan, *jobs: JobPlan) -> None:
    """Put empty artifacts of jobs into the store."""
    for job in jobs:
        folder = planned.store.partial(job.key) / "artifact"
        folder.mkdir()
        planned.store.commit(job.step, job.key, folder, {})
    planned.refresh()


def together(planned: Plan, *nodes: str) -> list[list[str]]:
    """Titles of the missing jobs of some nodes, as they are computed together."""
    leaders = [job for job in planned.leaders() if job.node in nodes]
    return [[member.title for member in planned.company(job.key)] for job in leaders]


@pytest.mark.usefixtures("marked")
def test_points_that_differ_in_what_may_differ_are_one_job() -> None:
    planned = plan(", seed: {grid: [0, 1]}, learning_rate: {grid: [0.1, 0.2]}")
    points = [f"vit[seed={s}, learning_rate={r}]" for s in (0, 1) for r in (0.1, 0.2)]
    assert together(planned, "vit") == [points]
    assert len({job.key for job in planned.grids["vit"].values()}) == 4
    assert {planned.leader(job.key).title for job in planned.grids["vit"].values()} == {points[0]}


@pytest.mark.usefixtures("marked")
def test_points_that_differ_in_anything_else_are_not() -> None:
    planned = plan(", seed: {grid: [0, 1]}, n_layers: {grid: [1, 2]}")
    assert together(planned, "vit") == [
        [f"vit[seed={seed}, n_layers={layers}]" for seed in (0, 1)] for layers in (1, 2)
    ]


@pytest.mark.usefixtures("marked")
def test_points_that_read_other_inputs_are_not() -> None:
    planned = plan("", "  wide: {step: train_vit, images: images, seed: {grid: [0, 1]}}\n")
    assert together(planned, "vit", "wide") == [
        ["vit", "wide[skip=0, seed=1]"],  # wide[skip=0, seed=0] is vit
        ["wide[skip=5, seed=0]", "wide[skip=5, seed=1]"],
    ]


@pytest.mark.usefixtures("marked")
def test_points_of_two_nodes_and_no_points_of_two_steps_are() -> None:
    other = "  other: {step: train_vit, images: {node: images, select: {skip: 0}}, seed: 7}\n"
    probe = "  acts: {step: extract_activations, model: vit, images: images, sites: [embed]}\n"
    assert together(plan("", other + probe), "vit", "other", "acts") == [
        ["vit", "other"],
        ["acts[skip=0]"],
        ["acts[skip=5]"],
    ]


def test_a_step_without_together_never_has_company(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    declared = replace(all_steps()["train_vit"], params=Params)
    monkeypatch.setattr(node, "all_steps", lambda: {**all_steps(), "train_vit": declared})
    assert together(plan(", seed: {grid: [0, 1]}"), "vit") == [["vit[seed=0]"], ["vit[seed=1]"]]


@pytest.mark.usefixtures("marked")
def test_what_is_in_the_store_is_left_out() -> None:
    planned = plan(", seed: {grid: [0, 1, 2]}")
    first, middle, last = planned.grids["vit"].values()
    make(planned, middle)
    assert together(planned, "vit") == [["vit[seed=0]", "vit[seed=2]"]]
    make(planned, first)
    assert planned.leader(last.key) == last
    assert together(planned, "vit") == [["vit[seed=2]"]]


@pytest.mark.usefixtures("marked")
def test_a_company_planned_again_while_it_is_made_still_has_all_its_members() -> None:
    """A cluster's node plans anew; another run may have made the leader by then."""
    planned = plan(", seed: {grid: [0, 1, 2]}")
    first, *others = planned.grids["vit"].values()
    make(planned, first)
    assert planned.company(first.key) == [first, *others]


@pytest.mark.usefixtures("marked")
def test_who_is_in_company_is_not_in_the_key() -> None:
    few, more = plan(", seed: {grid: [0, 1]}"), plan(", seed: {grid: [5, 1, 0, 7]}")
    assert few.grids["vit"][0,].key == more.grids["vit"][2,].key
    assert few.grids["vit"][1,].key == more.grids["vit"][1,].key


@pytest.mark.usefixtures("marked")
def test_companies_of_a_large_grid_are_several_and_do_not_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(company, "MOST", 3)
    planned = plan(f", seed: {{grid: {list(range(7))}}}")
    seeds = [[0, 1, 2], [3, 4, 5], [6]]
    assert together(planned, "vit") == [[f"vit[seed={seed}]" for seed in each] for each in seeds]
    make(planned, planned.grids["vit"][1,])
    assert together(planned, "vit")[1:] == [[f"vit[seed={seed}]" for seed in each] for each in seeds[1:]]


def declare(params: type[StepParams], function: Callable[..., Any] | None) -> None:
    def alone(images: xr.Dataset, params: Any, job: Job) -> None:
        raise AssertionError(f"called with {images}, {params} and {job}")

    alone.__annotations__["params"] = params
    step(inputs={"images": Images}, output=Images, together=function)(alone)


def test_a_declaration_that_does_not_fit_is_refused() -> None:
    def strange(pictures: xr.Dataset, members: Sequence[Any]) -> list[Any]:
        return [pictures, members]

    with pytest.raises(TypeError, match="need each other"):
        declare(Params, None)
    with pytest.raises(TypeError, match="need each other"):
        declare(train_vit.Params, never)
    with pytest.raises(TypeError, match=r"\['pictures', 'members'\], expected \['images', 'members'\]"):
        declare(Params, strange)


# --- by the real Snakemake


@pytest.fixture(scope="module")
def code(fresh_checkout: Callable[..., Checkout], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with two more steps and their rules."""
    folder = fresh_checkout(tmp_path_factory.mktemp("code")).folder
    rules = folder / "workflow" / "rules" / "data.smk"
    for file in sorted((HERE / "company_steps").glob("*.py")):
        shutil.copy(file, folder / "prisma_steps" / "steps")
        rule = (HERE.parents[1] / "workflow" / "rules" / "data.smk").read_text()
        assert rule.count("\nrule ") == 1
        rules.write_text(rules.read_text() + "\n\n" + rule.replace("load_images", file.stem))
    return folder


@pytest.fixture
def study(tmp_path: Path, code: Path) -> Iterator[Study]:
    with leaving_nobody(Study(tmp_path / "study", "grid", code=code)) as found:
        yield found


N_IMAGES = 60
NODES = f"""\
title: A grid
nodes:
  images: {{step: load_images, dataset: digits, n_images: {N_IMAGES}}}
  path: {{step: follow_mean, images: images, rate: RATES}}
"""
DOUBLED = "  double: {step: double_path, path: path}\n"


def grid(rates: Sequence[float], more: str = "", nodes: str = "") -> str:
    text = NODES.replace("RATES", f"{{grid: {list(rates)}}}" if len(rates) > 1 else f"{rates[0]}")
    return text.replace("images: images, ", f"images: images, {more}") + nodes


def states(going: Going) -> dict[str, str]:
    """What became of each job, by node and rate."""
    return {
        " ".join([job["node"], *map(str, job["point"].values())]): job["state"]
        for job in going.answer()["jobs"]
    }


def run(study: Study, code: int = 0) -> dict[str, str]:
    going = study.start()
    assert going.process.wait(300) == code, f"{going.told()}\n{study.logs()}"
    return states(going)


def manifests(study: Study, step: str = "follow_mean") -> dict[float, dict[str, Any]]:
    """Manifests of a step's artifacts, by rate."""
    found = [json.loads(file.read_text()) for file in study.root.glob(f"{step}/*/manifest.json")]
    return {manifest["parameters"]["rate"]: manifest for manifest in found}


def logs(study: Study, step: str = "follow_mean") -> list[str]:
    """Logs of a step's jobs, the latest run last."""
    return [file.read_text() for file in sorted(study.folder.glob(f"results/*/.runs/*/{step}/*.log"))]


@pytest.fixture(scope="module")
def alone(code: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[float, str]:
    """Digests of points that were each computed alone, by rate."""
    lonely = tmp_path_factory.mktemp("lonely") / "code"
    shutil.copytree(code, lonely)
    module = lonely / "prisma_steps" / "company.py"
    module.write_text(module.read_text().replace("MOST = 16", "MOST = 1"))
    study = Study(tmp_path_factory.mktemp("alone"), "grid", code=lonely)
    study.write(grid([0.25, 0.5, 0.75, 1.0])).finish()
    assert len(logs(study)) == 4
    assert not any("together_with" in manifest for manifest in manifests(study).values())
    return digests(study)


def digests(study: Study) -> dict[float, str]:
    return {rate: manifest["digest"] for rate, manifest in manifests(study).items()}


def of(alone: dict[float, str], *rates: float) -> dict[float, str]:
    return {rate: alone[rate] for rate in rates}


def test_a_grid_is_one_job_and_each_point_an_artifact_as_when_alone(
    study: Study, alone: dict[float, str]
) -> None:
    made = run(study.write(grid([0.25, 0.5, 0.75], nodes=DOUBLED)))
    assert made == dict.fromkeys(made, "computed")
    assert len(made) == 7
    assert logs(study) == [f"read {N_IMAGES} images for 3, going on from [0, 0, 0]\n"]
    assert len(logs(study, "double_path")) == 3
    assert digests(study) == of(alone, 0.25, 0.5, 0.75)
    for rate, manifest in manifests(study).items():
        assert manifest["title"] == f"path[rate={rate}]"
        assert manifest["identity"]["parameters"]["rate"] == rate
        assert manifest["together_with"] == 2
    assert len({manifest["key"] for manifest in manifests(study).values()}) == 3
    told = [status for status in study.statuses() if "/follow_mean/" in status["log"]]
    assert {(status["done"], status["total"]) for status in told} == {(N_IMAGES, N_IMAGES)}
    assert len(told) == 3

    made = run(study.write(grid([0.25, 0.5, 0.75, 1.0], nodes=DOUBLED)))
    assert {title for title, state in made.items() if state == "computed"} == {"path 1.0", "double 1.0"}
    assert logs(study)[-1] == f"read {N_IMAGES} images for 1, going on from [0]\n"
    assert digests(study) == alone
    assert not list(study.root.glob(".partial/*"))
    verify = [*study.words("verify"), "grid", "--recompute", "9"]
    assert subprocess.run(verify, cwd=study.folder, env=study.environment, check=False).returncode == 0
    assert study.held_locks() == []


def test_one_fails_and_the_others_are_kept(study: Study, alone: dict[float, str]) -> None:
    study.write(grid([0.25, 0, 0.75], nodes=DOUBLED))
    going = study.start()
    assert going.process.wait(300) == 1
    assert states(going) | dict.fromkeys(["double 0.25", "double 0", "double 0.75"]) == {
        "images": "computed",
        "path 0.25": "computed",
        "path 0": "failed",
        "path 0.75": "computed",
        **dict.fromkeys(["double 0.25", "double 0", "double 0.75"]),
    }
    assert going.answer()["failures"] == {"path[rate=0]": f"rate is 0: it would follow nothing {INPUTS}"}
    assert digests(study) == of(alone, 0.25, 0.75)
    (log,) = logs(study)
    assert f"path[rate=0]: rate is 0: it would follow nothing {INPUTS}\n" in log
    assert "Traceback" not in log
    again = run(study, code=1)
    assert again["path 0"] == "failed"
    assert {title: again[title] for title in again if title.startswith("double")} == {
        "double 0.25": "computed",
        "double 0": "pending",
        "double 0.75": "computed",
    }


def test_a_mistake_that_concerns_all_is_told_of_all(study: Study) -> None:
    study.write(grid([0.25, 2.0]))
    going = study.start()
    assert going.process.wait(300) == 1
    titles = ["path[rate=0.25]", "path[rate=2.0]"]
    assert going.answer()["failures"] == dict.fromkeys(titles, f"a rate above 1 overshoots {INPUTS}")
    assert manifests(study) == {}


@pytest.mark.parametrize("after", [[0.25, 0.5, 0.75], [0.5, 0.75, 1.0], [0.75]], ids=str)
def test_killed_it_goes_on_from_the_checkpoints_of_those_who_are_left(
    study: Study, alone: dict[float, str], after: list[float]
) -> None:
    before = [0.25, 0.5, 0.75]
    going = study.write(grid(before, "pause: 0.1, ")).start()
    wait_for(lambda: len(checkpoints(study)) == len(before), "checkpoints of all")
    (job,) = study.processes()["job"]
    job.kill()
    assert going.process.wait(60) == 1
    failures = going.answer()["failures"]
    assert len(failures) == 3
    assert all("killed" in message for message in failures.values())
    assert manifests(study) == {}
    study.write(grid(after)).finish()
    assert digests(study) == of(alone, *after)
    told = logs(study)[-1].rpartition("from ")[2]
    resumed = json.loads(told)
    assert len(resumed) == len(after)
    assert resumed.count(0) == len(set(after) - set(before))
    assert max(resumed) >= 1


def checkpoints(study: Study) -> list[Path]:
    return list(study.root.glob(".partial/*/scratch/checkpoint.pt"))


def test_killed_between_two_results_it_keeps_the_first(study: Study, alone: dict[float, str]) -> None:
    going = study.write(grid([0.25, 0.5, 0.75], "pause_between: 1000, ")).start()
    wait_for(lambda: "computed" in states_of_paths(study), "the first artifact")
    (job,) = study.processes()["job"]
    job.kill()
    assert going.process.wait(60) == 1
    assert states(going) == {
        "images": "computed",
        "path 0.25": "computed",
        "path 0.5": "failed",
        "path 0.75": "failed",
    }
    made = run(study.write(grid([0.25, 0.5, 0.75])))
    assert made["path 0.25"] == "cached"
    assert digests(study) == of(alone, 0.25, 0.5, 0.75)


def states_of_paths(study: Study) -> list[str]:
    return [status["state"] for status in study.statuses() if "/follow_mean/" in status["log"]]


def test_two_runs_at_once_compute_shared_members_once(
    tmp_path: Path, code: Path, alone: dict[float, str]
) -> None:
    store = tmp_path / "shared"
    one, two = (Study(tmp_path / name, name, store, code) for name in ("one", "two"))
    with leaving_nobody(one), leaving_nobody(two):
        one.write(grid([0.25, 0.5, 0.75], "pause: 0.1, "))
        two.write(grid([1.0, 0.75, 0.5], "pause: 0.1, "))
        going = [one.start(), two.start()]
        codes = [each.process.wait(300) for each in going]
    assert codes == [0, 0], [each.told() for each in going]
    made = Counter(key for each in going for key, state in each.states().items() if state == "computed")
    assert made == dict.fromkeys((name.rpartition("/")[2] for name in one.digests()), 1)
    assert digests(one) == alone
    assert one.held_locks() == []


def test_of_a_company_those_computed_before_are_linked(
    code: Path, tmp_path: Path, alone: dict[float, str]
) -> None:
    edited = tmp_path / "edited"
    shutil.copytree(code, edited)
    with leaving_nobody(Study(tmp_path / "study", "grid", code=edited)) as study:
        study.write(grid([0.25, 0.5])).finish()
        step = edited / "prisma_steps" / "steps" / "load_images.py"
        step.write_text(step.read_text() + "\n\nNOT_USED = 1\n")
        made = run(study.write(grid([0.25, 0.75, 0.5])))
    assert made == {
        "images": "computed",
        "path 0.25": "linked",
        "path 0.75": "computed",
        "path 0.5": "linked",
    }
    assert digests(study) == of(alone, 0.25, 0.5, 0.75)
    assert logs(study)[-1] == f"read {N_IMAGES} images for 1, going on from [0]\n"
    assert "together_with" not in manifests(study)[0.75]
    assert manifests(study)[0.5]["together_with"] == 1  # as it was computed
