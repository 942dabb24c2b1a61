"""One name for each step: its rule, its module, its function, its word in YAML, its folder in the store."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prisma_steps.step import Step, StepParams, all_steps, load_step

ROOT = Path(__file__).parents[2]
WORDS = ("input", "output", "params", "log", "benchmark", "threads", "resources", "script")


def rules() -> dict[str, dict[str, str]]:
    """Every rule of ``workflow/rules``, as the text of each of its words."""
    found = {}
    for file in sorted((ROOT / "workflow" / "rules").glob("*.smk")):
        for name, body in re.findall(r"^rule (\w+):\n((?:    .*\n|\n)+)", file.read_text(), re.MULTILINE):
            assert name not in found, f"rule {name} is there twice"
            found[name] = dict(re.findall(r"^    (\w+):((?:.*\n(?:        .*\n)*))", body, re.MULTILINE))
    return found


RULES, STEPS = rules(), all_steps()


def test_every_step_has_one_rule_and_every_rule_a_step() -> None:
    assert RULES.keys() == STEPS.keys()


def test_rule_files_hold_rules_and_comments_alone() -> None:
    for file in (ROOT / "workflow" / "rules").glob("*.smk"):
        outside = [line for line in file.read_text().splitlines() if line and line[0] not in " #"]
        assert all(re.fullmatch(r"rule \w+:", line) for line in outside), file.name


def test_the_snakefile_includes_every_rule_file_and_has_no_rule_but_all() -> None:
    text = (ROOT / "workflow" / "Snakefile").read_text()
    assert set(re.findall(r'^include: "rules/(.*)"', text, re.MULTILINE)) == {
        file.name for file in (ROOT / "workflow" / "rules").iterdir()
    }
    assert re.findall(r"^(?:rule|checkpoint) (\w+)", text, re.MULTILINE) == ["all"]


@pytest.mark.parametrize("name", RULES)
def test_a_rule_says_all_that_a_scheduler_needs_and_nothing_else(name: str) -> None:
    rule = RULES[name]
    assert rule.keys() == set(WORDS)
    for word in ("output", "log", "benchmark"):
        assert re.findall(rf"\b{name}\b", rule[word]), f"{word} lies in a folder of another step"
    assert rule["script"].split() == ['"../scripts/run_job.py"']
    assert int(rule["threads"]) >= 1
    assert {"mem_mb", "runtime"} <= set(re.findall(r"(\w+)=", rule["resources"]))


@pytest.mark.parametrize("step", STEPS.values(), ids=lambda step: step.name)
def test_module_function_and_word_have_the_name(step: Step) -> None:
    package = "figures" if step.is_figure else "steps"
    assert step.module == f"prisma_steps.{package}.{step.name}"
    assert step.function.__name__ == step.name
    assert (ROOT / "prisma_steps" / package / f"{step.name}.py").exists()
    assert load_step(step.name) is step


def test_every_module_of_steps_declares_one() -> None:
    modules = {file.stem for file in (ROOT / "prisma_steps" / "steps").glob("[a-z]*.py")}
    assert modules == {step.name for step in STEPS.values() if not step.is_figure}


@pytest.mark.parametrize("step", STEPS.values(), ids=lambda step: step.name)
def test_every_step_and_parameter_is_described(step: Step) -> None:
    assert step.summary.endswith(".")
    assert issubclass(step.params, StepParams)
    for name, info in step.params.model_fields.items():
        assert info.description, f"{step.name}.{name} has no description"
        assert name not in step.inputs, f"{step.name}.{name} is a slot too"
        assert name not in ("step", "figure", "grid", "axis"), f"{step.name}.{name} is a word of experiments"
