from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from prisma_steps.cli import app
from prisma_steps.experiment import read_experiment
from prisma_steps.json_schema import experiment_schema
from prisma_steps.parameters import settable
from prisma_steps.problems import ExperimentError
from prisma_steps.step import all_steps
from prisma_steps.yaml_source import read_yaml

ROOT = Path(__file__).parents[2]
STORED = ROOT / "experiments" / "schema.json"

NODES = """
nodes:
  images: {step: load_images, dataset: digits, seed: {grid: [0, 1]}}
  vit: {step: train_vit, images: images, n_layers: {grid: [1, 2], axis: depth}, learning_rate: 1}
  acts: {step: extract_activations, model: {node: vit, select: {depth: [1, 2]}}, images: images, sites: [q],
         parts: 2}
  curves: {figure: training_curves, model: {node: vit, select: {depth: 1}}}
claims:
  - {says: it rises, value: vit.test_accuracy.isel(depth=0, seed=0) < vit.test_accuracy.isel(depth=1, seed=0)}
  - {says: as published, published: 0.9, source: a paper, value: vit.test_accuracy.max(), within: 0.1}
  - {says: a share, value: vit.test_accuracy.min(), between: [0, 1]}
"""


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = experiment_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_stored_schema_is_the_one_that_the_steps_make() -> None:
    assert json.loads(STORED.read_text()) == experiment_schema(), "run `make schema`"


def test_make_schema_writes_it(tmp_path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert f"prisma-steps schema --out {STORED.relative_to(ROOT)}" in makefile
    written = tmp_path / "schema.json"
    assert CliRunner().invoke(app, ["schema", "--out", str(written)]).exit_code == 0
    assert written.read_text() == STORED.read_text()
    assert CliRunner().invoke(app, ["schema"]).stdout == STORED.read_text()


@pytest.mark.parametrize("file", sorted((ROOT / "experiments").rglob("*.yaml")), ids=lambda file: file.stem)
def test_it_accepts_the_experiments_and_they_name_it(file: Path, validator: Any) -> None:
    validator.validate(read_yaml(file, file.name).data)
    (named,) = re.findall(r"^# yaml-language-server: \$schema=(.*)$", file.read_text(), re.MULTILINE)
    assert (file.parent / named).resolve() == STORED


MALFORMED = {
    "unknown top-level key": ("nodes:", "node:"),
    "title that is a number": ("\nnodes:", "title: 3\nnodes:"),
    "unknown step": ("load_images", "load_image"),
    "figure as a step": ("figure: training_curves", "step: training_curves"),
    "unknown parameter": ("dataset: digits", "dataset: digits, n_image: 3"),
    "missing slot": ("step: train_vit, images: images,", "step: train_vit,"),
    "missing parameter": (", sites: [q]", ""),
    "wrong choice": ("digits", "digit"),
    "word for a number": ("learning_rate: 1", "learning_rate: fast"),
    "out of range": ("learning_rate: 1", "learning_rate: -1"),
    "empty grid": ("[0, 1]", "[]"),
    "wrong value in a grid": ("[0, 1]", "[0, x]"),
    "grid misspelt": ("{grid: [0, 1]}", "{gird: [0, 1]}"),
    "word in a slot": ("select: {depth: 1}", "selct: {depth: 1}"),
    "grid over parts": ("parts: 2", "parts: {grid: [1, 2]}"),
    "number of a part": ("parts: 2", "parts: 2, part: 1"),
    "name of a node": ("images: {step", "Images: {step"),
    "claim without words": ("says: it rises, value", "value"),
    "claim without a value": (", value: vit.test_accuracy.min()", ""),
    "unknown key of a claim": ("source: a paper", "sorce: a paper"),
    "two criteria": ("within: 0.1", "within: 0.1, above: 3"),
    "nothing to be near to": ("published: 0.9, ", ""),
    "negative distance": ("within: 0.1", "within: -0.1"),
    "one bound of two": ("between: [0, 1]", "between: [0]"),
    "word for a published number": ("published: 0.9", "published: high"),
}


def test_it_accepts_what_the_engine_accepts(validator: Any, tmp_path: Path) -> None:
    validator.validate(yaml.safe_load(NODES))
    (tmp_path / "x.yaml").write_text(NODES)
    read_experiment(tmp_path / "x.yaml")


@pytest.mark.parametrize("name", MALFORMED)
def test_it_refuses_what_the_engine_refuses(name: str, validator: Any, tmp_path: Path) -> None:
    before, after = MALFORMED[name]
    assert before in NODES
    text = NODES.replace(before, after, 1)
    assert not validator.is_valid(yaml.safe_load(text))
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ExperimentError):
        read_experiment(tmp_path / "x.yaml")


def test_every_parameter_is_described_and_no_mark_of_the_engine_is_left() -> None:
    schema = experiment_schema()
    for name, step in all_steps().items():
        properties = schema["$defs"][name]["properties"]
        for parameter, info in settable(step.params).items():
            assert properties[parameter]["description"] == info.description
    text = json.dumps(schema)
    assert not [mark for mark in ("only_for", "not_in_key", "as_before", "no_grid") if f'"{mark}"' in text]
