"""Claims in a file: what is read, and everything that is wrong with them at once, before anything runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prisma_steps.claims.criterion import Criterion
from prisma_steps.claims.declaration import Claim
from prisma_steps.experiment import Experiment, read_experiment
from prisma_steps.problems import ExperimentError, Problem

ROOT = Path(__file__).parents[2]
NODES = """\
nodes:
  images: {step: load_images, dataset: digits}
  vit: {step: train_vit, images: images, n_layers: {grid: [1, 2]}, attention_only: {grid: [false, true]},
        d_mlp: {grid: [32, 64], axis: width}, warmup: {grid: [5, 9], axis: width}, seed: {grid: [0, 1, 2]}}
  acts: {step: extract_activations, model: vit, images: images, sites: [resid_post], parts: 2}
  sae: {step: train_sae, activations: acts, architecture: relu}
  quality: {step: evaluate_sae, sae: sae, model: vit, images: images}
  curves: {figure: training_curves, model: vit}
"""
#: What leaves seeds only of a node with the grid of ``vit``.
ONE = "sel(n_layers=2, attention_only=True, d_mlp=32)"


def read(claims: str, tmp_path: Path, nodes: str = NODES) -> Experiment:
    file = tmp_path / "x.yaml"
    file.write_text(nodes + claims)
    return read_experiment(file)


def problems(claims: str, tmp_path: Path, nodes: str = NODES) -> list[Problem]:
    with pytest.raises(ExperimentError) as raised:
        read(claims, tmp_path, nodes)
    return raised.value.problems


def entry(value: str, rest: str = "above: 0") -> str:
    return f"claims:\n  - says: it is so\n    value: >-\n      {value}\n    {rest}\n"


def test_an_experiment_without_claims_has_none(tmp_path: Path) -> None:
    assert read("", tmp_path).claims == ()
    assert read("claims: []\n", tmp_path).claims == ()


def test_the_form_of_the_documentation(tmp_path: Path) -> None:
    """Within {…} YAML cuts a value at its commas."""
    text = """claims:
  - {says: "two layers with MLP solve it", published: 0.996, source: "a paper, a table",
     value: vit.test_accuracy.sel(n_layers=2, attention_only=False).mean("seed").max(), within: 0.02}
  - {says: "CE recovered exceeds 100 %", value: quality.ce_recovered.max(), above: 100}
  - {value: 'corr(quality.l0, quality.n_layers) < 0', says: it falls}
  - {says: b, value: corr(quality.l0, quality.n_layers), between: [-1, 0]}
"""
    first, second, third, fourth = read(text, tmp_path).claims
    value = 'vit.test_accuracy.sel(n_layers=2, attention_only=False).mean("seed").max()'
    assert first == Claim(
        "two layers with MLP solve it",
        first.value,
        value,
        0.996,
        "a paper, a table",
        Criterion("within", (0.02, 0.996)),
    )
    assert first.value.text == value
    assert (second.criterion, second.published) == (Criterion("above", (100.0,)), None)
    assert third.criterion is None
    assert fourth.criterion == Criterion("between", (-1.0, 0.0))
    assert fourth.text == "corr(quality.l0, quality.n_layers)"


@pytest.mark.parametrize(
    "value",
    [
        f"vit.test_accuracy.{ONE}",
        f"vit.test_accuracy.{ONE}.mean('seed')",
        f"quality.fvu.{ONE}.sel(token_kind='all')",
        f"quality.l0.{ONE}.isel(token_kind=0)",
        "quality.l0.mean(['n_layers', 'attention_only', 'width', 'token_kind'])",
        "quality.l0.sel(warmup=5, n_layers=1).isel(attention_only=-1).max('token_kind')",
        "quality.l0.sel(width=1, n_layers=1, attention_only=False).max('token_kind')",
        "quality.l0.sel(n_layers=[1]).max()",
        "images.pixels.max()",
        "acts.resid_post.sel(token_kind='cls').max()",
        "images.pixels.sel(label=3).mean()",
        "vit.n_layers.max() + vit.warmup.max() + vit.width.max()",
        "curves.anything.max()",
    ],
)
def test_what_can_be_told_to_be_right_is_accepted(value: str, tmp_path: Path) -> None:
    assert len(read(entry(value), tmp_path).claims) == 1


@pytest.mark.parametrize(
    ("value", "at", "what", "hint"),
    [
        ("vti.test_accuracy.max()", "vti.test_accuracy", "there is no node 'vti'", "did you mean 'vit'?"),
        (
            "vit.test_acuracy.max()",
            "vit.test_acuracy",
            "vit is model, which has no variable 'test_acuracy'",
            "did you mean 'test_accuracy'?",
        ),
        (
            "quality.fu.max()",
            "quality.fu",
            "quality is quality, which has no variable",
            "did you mean 'fvu'?",
        ),
        (
            "quality.qqqq.max()",
            "quality.qqqq",
            "has no variable",
            "expected one of: attention_only, d_mlp, fvu",
        ),
        ("vit.n_layer.max()", "vit.n_layer", "has no variable 'n_layer'", "did you mean 'n_layers'?"),
        (
            "quality.l0.max('sed')",
            "quality.l0.max('sed')",
            "quality.l0 has no dim 'sed'",
            "did you mean 'seed'?",
        ),
        ("quality.l0.max('latent')", "quality.l0.max('latent')", "no dim 'latent'", "expected one of: "),
        ("quality.l0.max('d_mlp')", "quality.l0.max('d_mlp')", "no dim 'd_mlp'", "expected one of: "),
        (
            "vit.n_layers.max('seed')",
            "vit.n_layers.max('seed')",
            "no dim 'seed'",
            "expected one of: n_layers",
        ),
        (
            "quality.l0.mean('seed').max('seed')",
            "quality.l0.mean('seed').max('seed')",
            "quality.l0 has no dim 'seed'",
            "expected one of",
        ),
        (
            "vit.test_accuracy.sel(n_layer=2).max()",
            "vit.test_accuracy.sel(n_layer=2)",
            "vit.test_accuracy has no dim or coordinate 'n_layer'",
            "did you mean 'n_layers'?",
        ),
        (
            "vit.test_accuracy.sel(n_layers=3).max()",
            "vit.test_accuracy.sel(n_layers=3)",
            "n_layers = 3 is not on the axis: n_layers = [1, 2]",
            "",
        ),
        ("vit.test_accuracy.sel(n_layers=True).max()", "vit.", "n_layers = true is not on the axis", ""),
        ("vit.test_accuracy.sel(d_mlp=[32, 65]).max()", "vit.", "d_mlp = 65 is not on the axis", ""),
        (
            "vit.test_accuracy.sel(d_mlp=32, warmup=9).max()",
            "vit.",
            "has no dim or coordinate 'warmup'",
            "expected one of",
        ),
        (
            "vit.test_accuracy.isel(n_layers=2).max()",
            "vit.",
            "there is no position 2 on n_layers, which has 2",
            "",
        ),
        ("vit.test_accuracy.isel(d_mlp=0).max()", "vit.", "has no dim or coordinate 'd_mlp'", "did you mean"),
        (
            "(vit.test_accuracy - quality.l0.max('token_kind')).sel(n_layers=9).max()",
            "(vit.",
            "n_layers = 9 is not on",
            "",
        ),
        (
            "corr(quality.l0, quality.n_layers, 'x').max()",
            "corr(",
            "the value has no dim 'x'",
            "expected one of",
        ),
        (
            "quality.l0.max('token_kind')",
            "quality",
            "left with the dim attention_only, n_layers, width",
            "reduce",
        ),
        (
            "vit.n_layers",
            "vit.n_layers",
            "left with the dim n_layers",
            "select one value, as .sel(n_layers=…)",
        ),
        ("3", "3", "names no node, expected a variable of one", "expected one of: acts, curves, images"),
        ("quality.l0.max", "quality.l0.max", "max is not called", "write .max(…)"),
        (
            "quality.l0.__class__",
            "quality.l0.__class__",
            ".__class__ is nothing that a value has",
            "call one of",
        ),
    ],
)
def test_mistakes_in_an_expression(value: str, at: str, what: str, hint: str, tmp_path: Path) -> None:
    (problem,) = problems(entry(value), tmp_path)
    assert (problem.line, problem.column, problem.where) == (11, 5, "claims.0.value")
    assert problem.what.startswith(at) and what in problem.what
    assert hint in problem.hint and bool(hint) == bool(problem.hint)


@pytest.mark.parametrize(
    ("claims", "where", "what", "hint"),
    [
        ("claims: 3\n", "claims", "is 3, expected a list of claims", ""),
        ("claims: {says: a}\n", "claims", "is {says: 'a'}, expected a list of claims", ""),
        ("claims: [it works]\n", "claims.0", "is 'it works', expected a mapping", "write it as {says:"),
        ("claims: [{value: vit.seed.max() > 0}]\n", "claims.0.says", "is missing", "write it as"),
        ("claims: [{says: a}]\n", "claims.0.value", "is missing", "write it as"),
        ("claims: [{says: a, value: }]\n", "claims.0.value", "is null, expected text", "write it as"),
        ("claims: [{says: 3, value: vit.seed.max() > 0}]\n", "claims.0.says", "is 3, expected text", "write"),
        (entry("vit.seed.max()", "aboev: 3\n    above: 1"), "claims.0.aboev", "no such key", "mean 'above'?"),
        (entry("vit.seed.max()", "above: high"), "claims.0.above", "is 'high', expected a finite number", ""),
        (entry("vit.seed.max()", "above: true"), "claims.0.above", "is true, expected a finite number", ""),
        (entry("vit.seed.max()", "below: .inf"), "claims.0.below", "is inf, expected a finite", ""),
        (entry("vit.seed.max()", f"below: 1{'0' * 400}"), "claims.0.below", "expected a finite", ""),
        (entry("vit.seed.max()", "above:"), "claims.0.above", "is null, expected a finite number", ""),
        (entry("vit.seed.max()", "within: 1"), "claims.0.within", "has no published number", "add published"),
        (
            entry("vit.seed.max()", "published: 1\n    within: -1"),
            "claims.0.within",
            "is -1, expected 0 or more",
            "",
        ),
        (entry("vit.seed.max()", "published: x\n    above: 1"), "claims.0.published", "is 'x', expected", ""),
        (
            entry("vit.seed.max()", "source: 3\n    above: 1"),
            "claims.0.source",
            "is 3, expected text",
            "write",
        ),
        (
            entry("vit.seed.max()", "above: 1\n    below: 2"),
            "claims.0.below",
            "stands beside above, expected one of within, above, below, between",
            "two claims",
        ),
        (entry("vit.seed.max()", "between: 3"), "claims.0.between", "is 3, expected two numbers", "[0.9"),
        (entry("vit.seed.max()", "between: [2, 1]"), "claims.0.between", "the lower one first", "[0.9"),
        (entry("vit.seed.max()", "between: [1, 2, 3]"), "claims.0.between", "expected two numbers", "[0.9"),
        (
            entry("vit.seed.mean()", "published: 3"),
            "claims.0.value",
            "is a number that is held against nothing",
            "add",
        ),
        (entry("vit.seed.max() > 1"), "claims.0.above", "the value is true or false", "remove above"),
        (
            entry("(vit.seed.max() + 1) & (vit.seed.max() > 1)", "source: a"),
            "claims.0.value",
            "vit.seed.max() + 1 is a number, expected a comparison",
            "put each comparison in parentheses",
        ),
        (
            entry("~(vit.seed.max() + 1)", "source: a"),
            "claims.0.value",
            "is a number, expected a comparison",
            "put",
        ),
        (
            'claims: [{says: a, value: images.pixels.sel(class_name="a, b", layer=0).max() > 3}]\n',
            "claims.0.value",
            "has a comma within quotes, where YAML ends it",
            "quote all of the value",
        ),
    ],
)
def test_mistakes_in_a_claim(claims: str, where: str, what: str, hint: str, tmp_path: Path) -> None:
    told = [problem for problem in problems(claims, tmp_path) if problem.where == where]
    assert any(what in problem.what and hint in problem.hint and problem.line >= 9 for problem in told)


def test_all_mistakes_are_told_at_once_with_those_of_nodes(tmp_path: Path) -> None:
    nodes = NODES.replace("n_layers: {grid: [1, 2]}", "n_layer: 3")
    claims = entry("vti.seed.max() + quality.l0.max('sed') + vit.anything.max('x').sel(y=1)", "aboev: 1")
    told = [(problem.where, problem.what) for problem in problems(claims, tmp_path, nodes)]
    assert told == [
        ("vit.n_layer", "train_vit has no parameter or slot of this name"),
        ("claims.0.value", "is a number that is held against nothing"),
        ("claims.0.value", "vti.seed: there is no node 'vti'"),
        ("claims.0.aboev", "a claim has no such key"),
    ], "of grids where something is wrong nothing is said"


def test_the_text_of_a_problem(tmp_path: Path) -> None:
    (problem,) = problems(entry("quality.l0.max('sed')"), tmp_path)
    assert problem.text("x.yaml") == (
        "x.yaml:11:5: claims.0.value: quality.l0.max('sed'): quality.l0 has no dim 'sed'\n"
        "    did you mean 'seed'?"
    )


ZIPPED = NODES.replace(
    "activations: acts, architecture: relu}",
    "activations: acts, architecture: relu,\n"
    "        layer: {grid: [0, 1], axis: place}, expansion: {grid: [2, 4], axis: place}}",
)
POINT = "n_layers=1, attention_only=False, width=0"


@pytest.mark.parametrize(
    "value",
    [
        f"quality.l0.sel({POINT}, layer=1, token_kind='all')",
        f"quality.l0.sel({POINT}, expansion=2, token_kind='all')",
        f"quality.l0.sel({POINT}, place=0, token_kind='all')",
        f"quality.l0.sel({POINT}, place_layer=1, token_kind='all')",
    ],
)
def test_coordinates_of_a_zipped_axis_that_are_named_as_a_dim_some_data_have(
    value: str, tmp_path: Path
) -> None:
    """One of the names is that in the data, which one depends on whether they have the dim ``layer``."""
    assert len(read(entry(value), tmp_path, ZIPPED).claims) == 1


def test_values_of_a_zipped_axis_are_known(tmp_path: Path) -> None:
    (problem,) = problems(entry("quality.l0.sel(layer=2).max()"), tmp_path, ZIPPED)
    assert "layer = 2 is not on the axis" in problem.what


@pytest.mark.parametrize("file", ["docs/claims.md", "README.md"])
def test_the_documentation_shows_what_can_be_read(file: str, tmp_path: Path) -> None:
    (shown,) = re.findall(
        r"^```yaml\n(claims:\n.*?)^```", (ROOT / file).read_text(), re.MULTILINE | re.DOTALL
    )
    claims = read(
        shown, tmp_path, NODES.replace("n_layers: {grid: [1, 2]}", "n_layers: {grid: [1, 2, 3]}")
    ).claims
    assert len(claims) == shown.count("says:")
