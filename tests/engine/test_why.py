"""``why`` names the parameter, the input, the outside data or the definition that changed, where it lies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from prisma_steps import fingerprint
from prisma_steps.explain import Explainer
from prisma_steps.plan import Plan, plan_experiment
from prisma_steps.step import all_steps
from prisma_steps.store import Store

NODES = """nodes:
  images: {step: load_images, dataset: image_folder, path: folder}
  vit: {step: train_vit, images: images, n_layers: {grid: [1, 2]}}
  acts: {step: extract_activations, model: vit, images: images, sites: [q]}
  curves: {figure: training_curves, model: vit}
"""


@pytest.fixture(autouse=True)
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store with every artifact of the experiment."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("folder/1.png").write_text("1")
    plan = planned(NODES)
    for job in plan.jobs.values():
        folder = plan.store.partial(job.key) / "artifact"
        folder.mkdir()
        code = job.identity["code"]
        plan.store.save_code(code, lambda job=job: fingerprint.code_definitions(all_steps()[job.step]))
        plan.store.commit(job.step, job.key, folder, {**job.spec("x"), "created": "2026"})


def planned(text: str) -> Plan:
    Path("x.yaml").write_text(text)
    return plan_experiment("x.yaml", Store(Path("artifacts")))


def why(node: str, text: str = NODES) -> set[str]:
    plan = planned(text)
    explainer = Explainer(plan)
    jobs = [job for job in plan.grids[node].values() if job.key not in plan.present]
    return {f"{cause.kind}: {cause}" for job in jobs for cause in explainer.why(job)}


def test_nothing_changed() -> None:
    assert planned(NODES).missing() == []


def test_a_parameter() -> None:
    text = NODES.replace("sites: [q]", "sites: [q, k]")
    assert why("acts", text) == {"parameter: acts: sites: ['q'] → ['q', 'k']"}


def test_a_parameter_further_up() -> None:
    text = NODES.replace("n_layers:", "d_model: 64, n_layers:")
    assert why("acts", text) == {"parameter: vit: d_model: 128 → 64"}
    assert why("curves", text) == {"parameter: vit: d_model: 128 → 64"}


def test_outside_data() -> None:
    Path("folder/1.png").write_text("22")
    for node in ("images", "vit", "acts"):
        assert why(node) == {"outside data: images: the content of path changed"}


def test_a_grid_that_grew_and_one_that_shrank() -> None:
    assert why("curves", NODES.replace("[1, 2]", "[1, 2, 3]")) == {
        "grid: curves: model: axis n_layers gains 3"
    }
    assert why("curves", NODES.replace("[1, 2]", "[1]")) == {"grid: curves: model: axis n_layers loses 2"}


@pytest.fixture
def edited(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if a function of one kernel had been given another name."""
    real, cached = fingerprint._source, (fingerprint._module_digest, fingerprint._code_digest)

    def source(module: str) -> str:
        renamed = module == "prisma_steps.models.reading"
        return real(module).replace("def read(", "def read_anew(") if renamed else real(module)

    monkeypatch.setattr(fingerprint, "_source", source)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.mark.usefixtures("edited")
def test_code_is_named_by_module_and_definition() -> None:
    assert why("acts") == {
        "code: acts: prisma_steps.models.reading: read removed",
        "code: acts: prisma_steps.models.reading: read_anew added",
    }
    assert why("images") == set(), "it does not reach that module"
