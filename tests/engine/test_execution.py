"""What the engine adds to what a step says."""

from __future__ import annotations

from pathlib import Path

import pytest

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
        ("variables: [fvu]", r"table: its input .data. has no fvu; .*\(data is the node few\)"),
        (
            "variables: [label], rows: [head]",
            r"its input .data. has no head; .* dims n_images \(2\), image .*data is the node few\)",
        ),
    ],
)
def test_a_figure_that_lacks_something_says_of_which_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parameters: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(NODES % parameters)
    plan = plan_experiment("x.yaml", Store(tmp_path / "artifacts"))
    with pytest.raises(StepError, match=message):
        for job in plan.jobs.values():
            list(run_jobs([job.spec("x")], plan.store, {job.key: StatusFile(tmp_path / job.key, "")}))
