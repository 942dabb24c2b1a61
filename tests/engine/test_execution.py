"""What the engine adds to what a step says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prisma_steps.job_process import explain
from prisma_steps.plan import plan_experiment
from prisma_steps.progress import StatusFile
from prisma_steps.runner import run_jobs
from prisma_steps.step import StepError
from prisma_steps.store import Store

NODES = """
nodes:
  few: {step: load_images, dataset: digits, n_images: {grid: [4, 5]}}
  numbers: {figure: table, data: few, %s}
"""


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("variables: [fvu]", r"table: its input .data. has no fvu; .*\(inputs: data is the node few\)"),
        (
            "variables: [label], rows: [head]",
            r"its input .data. has no head; .* dims n_images \(2\), image .*\(inputs: data is the node few\)",
        ),
    ],
)
def test_a_figure_that_lacks_something_says_of_which_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parameters: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(NODES % parameters)
    plan = plan_experiment("x.yaml", Store(tmp_path / "artifacts"))
    spec = {}
    with pytest.raises(StepError) as caught:
        for job in plan.jobs.values():
            spec = job.spec("x")
            list(run_jobs([spec], plan.store, {job.key: StatusFile(tmp_path / job.key, "")}))
    told = explain(caught.value, spec, plan.store.root, tmp_path)
    assert re.search(message, told)
    assert told.count("is the node few") == 1
