"""What a user is told of a malformed experiment: every mistake once, where it stands, what was expected."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from prisma_steps.plan import plan_experiment
from prisma_steps.problems import ExperimentError
from prisma_steps.store import Store

if TYPE_CHECKING:
    from conftest import Checkout

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).with_name("prisma-steps")


class Told(NamedTuple):
    """One problem: its line, its column, whose it is, and what its message and its hint say."""

    line: int
    column: int
    where: str
    what: str
    hint: str = ""


# Nodes to be wrong about. They take lines 2 to 5 of the file, in this order.
SPRITES = "  sprites: {step: load_images, dataset: dsprites, n_images: 100}\n"
VIT = "  vit: {step: train_vit, images: sprites}\n"
VITS = "  vit: {step: train_vit, images: sprites, n_layers: {grid: [1, 2]}}\n"
WIDE = "  vit: {step: train_vit, images: sprites, d_model: {grid: [32, 64]}}\n"
ACTS = "  acts: {step: extract_activations, model: vit, images: sprites, sites: [resid_post]}\n"
SAE = "  sae: {step: train_sae, activations: acts}\n"


def vit(parameters: str) -> str:
    """An experiment whose third line is a node with ``parameters`` from column 43 on."""
    return f"nodes:\n{SPRITES}  vit: {{step: train_vit, images: sprites, {parameters}}}\n"


def images(parameters: str) -> str:
    """An experiment whose second line is a node with ``parameters`` from column 32 on."""
    return f"nodes:\n  sprites: {{step: load_images, {parameters}}}\n"


def acts(model: str, vits: str = VITS) -> str:
    """An experiment whose fourth line takes ``model`` from column 44 on."""
    node = f"  acts: {{step: extract_activations, model: {model}, images: sprites, sites: [resid_post]}}\n"
    return f"nodes:\n{SPRITES}{vits}{node}"


def laughs() -> str:
    lists = ["a: &a [" + ", ".join(["lol"] * 9) + "]"]
    for name, before in zip("bcdefghi", "abcdefgh", strict=True):
        lists.append(f"{name}: &{name} [" + ", ".join([f"*{before}"] * 9) + "]")
    return "\n".join([*lists, "nodes: *i", ""])


FILES = {
    # --- not YAML
    "bracket never closed": ("nodes:\n  a: [1, 2\n", [Told(3, 1, "", "not valid YAML", "")]),
    "comma forgotten": (
        "nodes:\n  a: {step: load_images\n  b: 3}\n",
        [Told(3, 4, "", "expected ',' or '}', but got ':'")],
    ),
    "tab": ("nodes:\n\ta: {step: load_images}\n", [Told(2, 1, "", "not valid YAML", "indent with spaces")]),
    "control character": ("nodes:\n  a: \x07\n", [Told(2, 6, "", "U+0007 is not allowed")]),
    "two documents": ("nodes: {}\n---\nnodes: {}\n", [Told(2, 1, "", "expected a single document")]),
    "alias of nothing": ("nodes:\n  a: *b\n", [Told(2, 6, "", "undefined alias 'b'")]),
    # --- YAML, but no plain data
    "tag that would run a command": (
        "nodes:\n  a: !!python/object/apply:os.system ['touch ran']\n",
        [Told(2, 6, "a", "the tag !!python/object/apply:os.system", "remove the tag")],
    ),
    "tags in two places": (
        "nodes:\n  a: {step: load_images, dataset: !!binary ZGlnaXRz}\n  b: !!set {x, y}\n",
        [Told(2, 35, "a.dataset", "the tag !!binary"), Told(3, 6, "b", "the tag !!set")],
    ),
    "alias of what contains it": (
        "nodes:\n  a: &a {step: load_images, dataset: *a}\n",
        [Told(2, 6, "a.dataset", "an alias of what contains it", "write the value out")],
    ),
    "billion laughs": (laughs(), [Told(1, 13, "", "more than 100,000 values")]),
    "nested deeply": ("nodes: " + "[" * 100 + "]" * 100, [Told(1, 40, "", "more than 32 levels")]),
    "nested very deeply": ("nodes: " + "[" * 2000 + "]" * 2000, [Told(1, 1, "", "nested too deeply")]),
    "merge key": (
        "nodes:\n  a: &a {step: load_images, dataset: digits}\n  b: {<<: *a, seed: 1}\n",
        [Told(3, 7, "b", "no merge key", "write the keys out")],
    ),
    "key that is a list": ("nodes:\n  ? [a, b]\n  : 3\n", [Told(2, 5, "", "a key must be a word")]),
    "number of 5,000 digits": (
        vit("seed: " + "9" * 5000),
        [Told(3, 49, "vit.seed", "has too many digits")],
    ),
    # --- the top level
    "empty": ("", [Told(1, 1, "", "the file is empty, expected a mapping with title: and nodes:")]),
    "only comments": ("# to do\n", [Told(1, 1, "", "the file is empty")]),
    "list": ("- a\n- b\n", [Told(1, 1, "", "holds ['a', 'b'], expected a mapping")]),
    "unknown top-level key": (
        f"titel: x\nnodes:\n{SPRITES}",
        [Told(1, 1, "titel", "unknown key", "did you mean 'title'?")],
    ),
    "nodes misspelt": (f"node:\n{SPRITES}", [Told(1, 1, "node", "unknown key", "did you mean 'nodes'?")]),
    "no nodes": ("title: x\nnodes:\n", [Told(2, 1, "nodes", "needs at least one node", "add nodes:")]),
    "nodes as a list": (
        "nodes:\n  - step: load_images\n",
        [Told(1, 1, "nodes", "expected a mapping of node")],
    ),
    "title that is a number": (f"title: 3\nnodes:\n{SPRITES}", [Told(1, 1, "title", "is 3, expected text")]),
    "seed that is a word": (
        f"seed: one\nnodes:\n{SPRITES}{VIT}",
        [Told(1, 1, "seed", "is 'one', expected a whole number")],
    ),
    "seed that is a truth value": (f"seed: true\nnodes:\n{SPRITES}", [Told(1, 1, "seed", "is true")]),
    "negative seed": (
        f"seed: -1\nnodes:\n{SPRITES}{VIT}",
        [Told(1, 1, "seed", "is -1, expected 0 or more")],
    ),
    "node named twice": (
        f"nodes:\n{SPRITES}{SPRITES}",
        [Told(3, 3, "sprites", "is given twice, first in line 2")],
    ),
    "parameter given twice": (
        images("dataset: digits, dataset: dsprites"),
        [Told(2, 49, "sprites.dataset", "is given twice")],
    ),
    # --- nodes
    "names that are none": (
        "nodes:\n"
        + "".join(
            f"  {name}: {{step: load_images, dataset: digits}}\n"
            for name in ("Sprites", "2x", "a-b", "'../a'", "''")
        ),
        [
            Told(2, 3, "Sprites", "lower-case letters", "for example sprites"),
            Told(3, 3, "2x", "starts with a letter"),
            Told(4, 3, "a-b", "lower-case letters", "for example a_b"),
            Told(5, 3, "../a", "lower-case letters", "for example a"),
            Told(6, 3, "''", "lower-case letters"),
        ],
    ),
    "node that is a word": (
        "nodes:\n  sprites: load_images\n",
        [Told(2, 3, "sprites", "is 'load_images', expected a mapping", "write it as {step:")],
    ),
    "node that is nothing": (
        "nodes:\n  sprites:\n",
        [Told(2, 3, "sprites", "is null, expected a mapping")],
    ),
    "unknown step": (
        "nodes:\n  sprites: {step: load_image, dataset: digits}\n",
        [Told(2, 13, "sprites.step", "there is no step 'load_image'", "did you mean 'load_images'?")],
    ),
    "step that is nothing": (
        "nodes:\n  sprites: {step:, dataset: digits}\n",
        [Told(2, 13, "sprites.step", "there is no step null", "expected one of: ")],
    ),
    "unknown figure": (
        f"nodes:\n{SPRITES}{VIT}  plot: {{figure: trainig_curves, models: vit}}\n",
        [Told(4, 10, "plot.figure", "there is no figure", "did you mean 'training_curves'?")],
    ),
    "figure as a step": (
        f"nodes:\n{SPRITES}{VIT}  plot: {{step: training_curves, model: vit}}\n",
        [Told(4, 10, "plot.step", "no step 'training_curves'", "write figure: training_curves")],
    ),
    "step as a figure": (
        "nodes:\n  sprites: {figure: load_images, dataset: digits}\n",
        [Told(2, 13, "sprites.figure", "no figure 'load_images'", "write step: load_images")],
    ),
    "step and figure": (
        f"nodes:\n{SPRITES}{VIT}  plot: {{step: train_vit, figure: training_curves, model: vit}}\n",
        [Told(4, 3, "plot", "has both step: and figure:, expected one")],
    ),
    "neither step nor figure": (
        "nodes:\n  sprites: {stp: load_images, dataset: digits}\n",
        [Told(2, 3, "sprites", "needs either step: or figure:", "did you mean 'step'?")],
    ),
    # --- parameters
    "unknown parameter": (
        vit("n_layer: 2"),
        [Told(3, 43, "vit.n_layer", "train_vit has no parameter or slot", "did you mean 'n_layers'?")],
    ),
    "word for a whole number": (
        vit("n_layers: two"),
        [Told(3, 43, "vit.n_layers", "is 'two', expected a whole number", "n_layers: number of blocks")],
    ),
    "number in quotes": (vit("n_layers: '2'"), [Told(3, 43, "vit.n_layers", "is '2', expected a whole")]),
    "truth value for a whole number": (vit("n_layers: true"), [Told(3, 43, "vit.n_layers", "is true, exp")]),
    "fraction for a whole number": (vit("n_layers: 2.5"), [Told(3, 43, "vit.n_layers", "is 2.5, expected")]),
    "word for a number": (
        vit("learning_rate: 1e-3x"),
        [Told(3, 43, "vit.learning_rate", "is '1e-3x', expected a number")],
    ),
    "1 for true": (
        vit("attention_only: 1"),
        [Told(3, 43, "vit.attention_only", "is 1, expected true or fal")],
    ),
    "no for false": (
        vit("attention_only: no"),
        [Told(3, 43, "vit.attention_only", "is 'no', expected true")],
    ),
    "list for a number": (vit("n_layers: [1, 2]"), [Told(3, 43, "vit.n_layers", "is [1, 2], expected a wh")]),
    "nothing for a number": (vit("n_layers:"), [Told(3, 43, "vit.n_layers", "is null, expected a whole")]),
    "not a number": (vit("learning_rate: .nan"), [Told(3, 43, "vit.learning_rate", "a finite number")]),
    "infinity": (vit("learning_rate: 1e999"), [Told(3, 43, "vit.learning_rate", "a finite number")]),
    "too small": (
        vit("n_layers: 0"),
        [Told(3, 43, "vit.n_layers", "is 0, expected a number greater than 0")],
    ),
    "too large": (vit("test_fraction: 1"), [Told(3, 43, "vit.test_fraction", "a number less than 1")]),
    "more images than there are": (
        images("dataset: digits, n_images: 5000"),
        [Told(2, 3, "sprites", "digits has 1,797 images")],
    ),
    "parameters that do not fit": (
        vit("d_model: 128, n_heads: {grid: [2, 3, 5]}"),
        [
            Told(3, 3, "vit", "n_heads 3 does not divide d_model 128"),
            Told(3, 3, "vit", "n_heads 5 does not divide d_model 128"),
        ],
    ),
    "wrong choice": (
        images("dataset: dsprite"),
        [Told(2, 32, "sprites.dataset", "is 'dsprite', expected 'dsprites', ", "did you mean 'dsprites'?")],
    ),
    "choice of the wrong type": (
        images("dataset: 3"),
        [Told(2, 32, "sprites.dataset", "is 3, expected 'dsprites', 'digits'", "dsprites (drawn)")],
    ),
    "none of two types": (
        f"nodes:\n{SPRITES}{VIT}{ACTS.replace('sites:', 'layers: lst, sites:')}",
        [Told(4, 66, "acts.layers", "is 'lst', expected 'all' or 'last' or a list", "did you mean 'last'?")],
    ),
    "entry of a list of the wrong type": (
        f"nodes:\n{SPRITES}{VIT}{ACTS.replace('sites:', 'layers: [0, x], sites:')}",
        [Told(4, 78, "acts.layers.1", "is 'x', expected a whole number")],
    ),
    "list without entries": (
        f"nodes:\n{SPRITES}{VIT}{ACTS.replace('resid_post', '')}",
        [Told(4, 66, "acts.sites", "is [], expected at least 1 entry")],
    ),
    "unknown site": (
        f"nodes:\n{SPRITES}{VIT}{ACTS.replace('resid_post', 'resid_pos')}",
        [Told(4, 74, "acts.sites.0", "Did you mean resid_post?")],
    ),
    "site with a layer": (
        f"nodes:\n{SPRITES}{VIT}{ACTS.replace('resid_post', 'blocks.3.hook_resid_post')}",
        [Told(4, 74, "acts.sites.0", "names one layer: write resid_post")],
    ),
    "missing parameter": (
        "nodes:\n  sprites: {step: load_images}\n",
        [Told(2, 3, "sprites.dataset", "is missing", "dsprites (drawn)")],
    ),
    # --- slots
    "missing slot": (
        "nodes:\n  vit: {step: train_vit}\n",
        [Told(2, 3, "vit.images", "is missing: train_vit needs a node of kind images", "add images: <node>")],
    ),
    "slot that names no node": (
        f"nodes:\n{SPRITES}  vit: {{step: train_vit, images: sprite}}\n",
        [Told(3, 26, "vit.images", "there is no node 'sprite'", "did you mean 'sprites'?")],
    ),
    "slot that is a number": (
        f"nodes:\n{SPRITES}  vit: {{step: train_vit, images: 3}}\n",
        [Told(3, 26, "vit.images", "is 3, expected the name of a node", "or {node: name, select:")],
    ),
    "slot with a misspelt word": (
        acts("{node: vit, selct: {n_layers: 1}}"),
        [Told(4, 37, "acts.model", "expected the name of a node", "did you mean 'select'?")],
    ),
    "slot of another kind": (
        f"nodes:\n{SPRITES}{VIT}{ACTS.replace('model: vit', 'model: sprites')}",
        [
            Told(
                4,
                37,
                "acts.model",
                "sprites is images (from load_images), expected model",
                "nodes of kind model: vit",
            )
        ],
    ),
    "a figure of a figure": (
        f"nodes:\n{SPRITES}{VIT}  plot: {{figure: training_curves, model: vit}}\n"
        "  again: {figure: metric_by_axis, data: plot, variable: x, along: n_layers}\n",
        [
            Told(
                5,
                35,
                "again.data",
                "plot is figure (from training_curves), expected any",
                "nodes of kind any: sprites, vit",
            )
        ],
    ),
    "slot of a kind that there is no node of": (
        "nodes:\n  a: {step: train_vit, images: b}\n  b: {step: train_sae, activations: c}\n"
        "  c: {step: train_sae, activations: c2}\n",
        [
            Told(2, 24, "a.images", "b is dictionary", "add a node of load_images"),
            Told(3, 24, "b.activations", "c is dictionary", "add a node of extract_activations"),
            Told(4, 24, "c.activations", "there is no node 'c2'"),
        ],
    ),
    "a table of a figure": (
        f"nodes:\n{SPRITES}{VIT}  plot: {{figure: training_curves, model: vit}}\n"
        "  again: {figure: table, data: plot, variables: [x]}\n",
        [
            Told(
                5,
                26,
                "again.data",
                "plot is figure (from training_curves), expected any",
                "nodes of kind any: sprites, vit",
            )
        ],
    ),
    "figure in a slot": (
        f"nodes:\n{SPRITES}{VIT}  plot: {{figure: training_curves, model: vit}}\n"
        "  again: {step: train_vit, images: plot}\n",
        [
            Told(
                5,
                28,
                "again.images",
                "plot is figure (from training_curves)",
                "nodes of kind images: sprites",
            )
        ],
    ),
    "node made from itself": (
        "nodes:\n  vit: {step: train_vit, images: vit}\n",
        [
            Told(2, 3, "vit", "is made from itself: vit → vit", "break the cycle"),
            Told(2, 26, "vit.images", "vit is model"),
        ],
    ),
    "cycle of three": (
        "nodes:\n"
        "  a: {step: evaluate_sae, sae: b, model: m, images: i}\n"
        "  b: {step: train_sae, activations: c}\n"
        "  c: {step: extract_activations, model: a, images: i, sites: [q]}\n"
        "  i: {step: load_images, dataset: digits}\n"
        "  m: {step: train_vit, images: i}\n",
        [
            Told(2, 3, "a", "is made from itself: a → c → b → a", "break the cycle at one node"),
            Told(4, 34, "c.model", "a is quality", "nodes of kind model: m"),
        ],
    ),
    "two cycles": (
        "nodes:\n  a: {step: train_vit, images: a}\n  b: {step: train_vit, images: b}\n",
        [
            Told(2, 3, "a", "is made from itself: a → a"),
            Told(2, 24, "a.images", "a is model"),
            Told(3, 3, "b", "is made from itself: b → b"),
            Told(3, 24, "b.images", "b is model"),
        ],
    ),
    # --- grids
    "grid without values": (
        vit("n_layers: {grid: []}"),
        [Told(3, 43, "vit.n_layers", "grid is [], expected")],
    ),
    "grid that is no list": (vit("n_layers: {grid: 3}"), [Told(3, 43, "vit.n_layers", "expected a list")]),
    "grid with a value twice": (
        vit("n_layers: {grid: [1, 2, 1]}"),
        [Told(3, 43, "vit.n_layers", "the grid holds n_layers = 1 twice", "remove one")],
    ),
    "grid with a value in two spellings": (
        vit("learning_rate: {grid: [1e-3, 0.0010]}"),
        [Told(3, 43, "vit.learning_rate", "holds learning_rate = 0.001 twice")],
    ),
    "grid misspelt": (
        vit("n_layers: {gird: [1, 2]}"),
        [Told(3, 43, "vit.n_layers", "expected a value or {grid: […]}", "did you mean 'grid'?")],
    ),
    "word beside grid": (
        vit("n_layers: {grid: [1, 2], axes: size}"),
        [Told(3, 43, "vit.n_layers", "expected a value or {grid: […]}", "did you mean 'axis'?")],
    ),
    "axis without grid": (
        vit("n_layers: {axis: a}"),
        [Told(3, 43, "vit.n_layers", "is {axis: 'a'}", "add gri")],
    ),
    "axis that is no name": (
        vit("n_layers: {grid: [1, 2], axis: my size}"),
        [Told(3, 68, "vit.n_layers", "axis is 'my size', expected a name", "letters, digits and _")],
    ),
    "wrong values in a grid": (
        vit("n_layers: {grid: [1, two, 0]}"),
        [
            Told(3, 64, "vit.n_layers", "is 'two', expected a whole number"),
            Told(3, 69, "vit.n_layers", "is 0, expected a number greater than 0"),
        ],
    ),
    "grid in a grid": (
        vit("n_layers: {grid: [1, {grid: [2]}]}"),
        [Told(3, 64, "vit.n_layers", "is {grid: [2]}")],
    ),
    "zip of two lengths": (
        vit("n_layers: {grid: [1, 2], axis: size}, d_model: {grid: [32], axis: size}"),
        [Told(3, 43, "vit", "must have the same length: n_layers has 2, d_model has 1", "add the missing")],
    ),
    "zip with a point twice": (
        vit("n_layers: {grid: [1, 1], axis: size}, d_model: {grid: [32, 32], axis: size}"),
        [Told(3, 43, "vit.n_layers", "the grid holds n_layers = 1, d_model = 32 twice")],
    ),
    "grid over what has no effect": (
        f"nodes:\n{SPRITES}{VIT}{ACTS}"
        "  sae: {step: train_sae, activations: acts, architecture: relu, k: {grid: [8, 16]}}\n",
        [Told(5, 65, "sae.k", "a grid over a parameter that has no effect", "remove it, or change")],
    ),
    "grid without end": (
        vit(f"n_layers: {{grid: {list(range(1, 1001))}}}, d_mlp: {{grid: {list(range(1, 1001))}}}"),
        [Told(3, 3, "vit", "1,000,000 points (1,000 n_layers × 1,000 d_mlp), at most 100,000", "select:")],
    ),
    "axis named as a dimension of the output": (
        f"nodes:\n{SPRITES}{VIT}{ACTS}  sae: {{step: train_sae, activations: acts, k: {{grid: [8, 16], "
        "axis: latent}}\n",
        [Told(5, 3, "sae", "the axis 'latent' is also a dimension of dictionary", "axis: latent_value")],
    ),
    "inherited axis named as a dimension of the output": (
        f"nodes:\n{SPRITES}{WIDE}{ACTS}{SAE}",
        [
            Told(
                4,
                3,
                "acts",
                "the axis 'd_model', inherited from an input,",
                "where it is made: axis: d_model_",
            )
        ],
    ),
    "parameter on two axes": (
        vit(
            "n_layers: {grid: [1, 2]}, seed: {grid: [0, 1], axis: size}, d_mlp: {grid: [64, 128], axis: size}"
        )
        + ACTS
        + "  sae: {step: train_sae, activations: acts, k: {grid: [8, 16]}, seed: {grid: [0, 1]}}\n",
        [Told(5, 3, "sae", "'seed' is on two axes, 'size' and 'seed'", "an axis of its own name")],
    ),
    "axes of an input and the node in conflict": (
        "nodes:\n  sprites: {step: load_images, dataset: digits, seed: {grid: [0, 1]}}\n"
        "  vit: {step: train_vit, images: sprites, seed: {grid: [0, 2]}}\n",
        [Told(3, 3, "vit", "axis 'seed' is seed = [0, 1] in one and seed = [0, 2] in the other", "select:")],
    ),
    "axes of two inputs in conflict": (
        f"nodes:\n{SPRITES}{VITS}{ACTS}{SAE}{VITS.replace('vit:', 'more:').replace('[1, 2]', '[1, 3]')}"
        "  quality: {step: evaluate_sae, sae: sae, model: more, images: sprites}\n",
        [
            Told(
                7,
                43,
                "quality.model",
                "n_layers = [1, 2] in one and n_layers = [1, 3] in the other",
                "select",
            )
        ],
    ),
    # --- parts
    "grid over parts": (
        f"nodes:\n{SPRITES}{VIT}{ACTS.replace('sites:', 'parts: {grid: [2, 3]}, sites:')}",
        [Told(4, 66, "acts.parts", "is {grid: [2, 3]}, expected one value", "jobs that the images are")],
    ),
    "number of a part": (
        f"nodes:\n{SPRITES}{VIT}{ACTS.replace('sites:', 'parts: 3, part: 1, sites:')}",
        [Told(4, 76, "acts.part", "has no parameter or slot of this name", "did you mean 'parts'?")],
    ),
    "no parts": (
        f"nodes:\n{SPRITES}{VIT}{ACTS.replace('sites:', 'parts: 0, sites:')}",
        [Told(4, 66, "acts.parts", "is 0, expected a number greater than 0")],
    ),
    "parts in words": (
        f"nodes:\n{SPRITES}{VIT}{ACTS.replace('sites:', 'parts: three, sites:')}",
        [Told(4, 66, "acts.parts", "is 'three', expected a whole number")],
    ),
    "more parts than can be planned": (
        f"nodes:\n{SPRITES}{VIT}{ACTS.replace('sites:', 'parts: 1000000000000, sites:')}",
        [Told(4, 66, "acts.parts", "is 1000000000000, expected 10000 or less")],
    ),
    "parts of a step that makes none": (
        vit("parts: 2"),
        [Told(3, 43, "vit.parts", "train_vit has no parameter or slot of this name")],
    ),
    "axis named as that of parts": (
        f"nodes:\n{SPRITES}{VIT}"
        f"{ACTS.replace('sites:', 'parts: 2, tokens: {grid: [cls, patch], axis: part}, sites:')}",
        [Told(4, 105, "acts.tokens", "the axis 'part' is that of a node's parts", "axis: tokens_value")],
    ),
    "select of a part": (
        f"nodes:\n{SPRITES}{VIT}{ACTS.replace('sites:', 'parts: 2, sites:')}"
        "  sae: {step: train_sae, activations: {node: acts, select: {part: 1 of 2}}}\n",
        [Told(5, 61, "sae.activations", "acts has no axis 'part'", "acts has no grid: leave select out")],
    ),
    # --- select
    "select of an unknown axis": (
        acts("{node: vit, select: {n_layer: 1}}"),
        [Told(4, 65, "acts.model", "vit has no axis 'n_layer'", "did you mean 'n_layers'?")],
    ),
    "select of a value that is not there": (
        acts("{node: vit, select: {n_layers: 3}}"),
        [Told(4, 56, "acts.model", "n_layers = 3 is not on the axis: n_layers = [1, 2]")],
    ),
    "select of values of which one is not there": (
        acts("{node: vit, select: {n_layers: [2, true]}}"),
        [Told(4, 56, "acts.model", "n_layers = true is not on the axis")],
    ),
    "select of nothing": (
        acts("{node: vit, select: {n_layers: []}}"),
        [Told(4, 56, "acts.model", "nothing is left of axis 'n_layers'")],
    ),
    "select that is a list": (
        acts("{node: vit, select: [1]}"),
        [Told(4, 56, "acts.model", "select is [1], expected {axis: value}")],
    ),
    "select on a node without a grid": (
        acts("{node: vit, select: {n_layers: 1}}", VIT),
        [Told(4, 65, "acts.model", "vit has no axis 'n_layers'", "vit has no grid: leave select out")],
    ),
    # --- folders
    "no such folder": (
        images("dataset: image_folder, path: ../nowhere"),
        [Told(2, 55, "sprites.path", "there is no folder '../nowhere'", "relative paths start at the exp")],
    ),
    "file for a folder": (
        images("dataset: image_folder, path: experiment.yaml"),
        [Told(2, 55, "sprites.path", "'experiment.yaml' is a file, expected a folder")],
    ),
    "folder without a name": (
        images("dataset: image_folder, path: ''"),
        [Told(2, 55, "sprites.path", "there is no folder ''", "name a folder")],
    ),
    "home of nobody": (
        images("dataset: image_folder, path: ~nobody_of_this_name/images"),
        [Told(2, 55, "sprites.path", "there is no folder '~nobody_of_this_name/images'")],
    ),
    "folder left out": (
        images("dataset: image_folder"),
        [Told(2, 3, "sprites", "dataset: image_folder needs `path`")],
    ),
    "folder where none is read": (
        images("dataset: digits, path: ."),
        [Told(2, 3, "sprites", "`path` is for dataset: image_folder or video_folder, not for digits")],
    ),
    # --- models from elsewhere
    "model without a source": (
        "nodes:\n  vit: {step: load_model}\n",
        [Told(2, 3, "vit", "by `path` (a folder) or by `name` (of the hub), got neither")],
    ),
    "model with two sources": (
        "nodes:\n  vit: {step: load_model, path: ., name: org/tiny}\n",
        [Told(2, 3, "vit", "got both")],
    ),
    "model in no folder": (
        "nodes:\n  vit: {step: load_model, path: ../models/nowhere}\n",
        [
            Told(
                2, 27, "vit.path", "there is no folder '../models/nowhere'", "relative paths start at the exp"
            )
        ],
    ),
    "revision of a folder": (
        "nodes:\n  vit: {step: load_model, path: ., revision: v2}\n",
        [Told(2, 3, "vit", "`revision` is of a hub model: leave it out beside `path`")],
    ),
    "templates without classes": (
        'nodes:\n  vit: {step: load_model, path: ., templates: ["a {}"]}\n',
        [Told(2, 3, "vit", "`templates` need `class_names`")],
    ),
    "template without a gap": (
        "nodes:\n  vit: {step: load_model, path: ., class_names: [a], templates: [a photo]}\n",
        [Told(2, 54, "vit.templates", "a template has {} once")],
    ),
    # --- all at once
    "many mistakes": (
        "titel: x\nseed: one\nnodes:\n"
        "  sprites: {step: load_image, dataset: digits}\n"
        "  vit: {step: train_vit, images: sprite, n_layers: 0, d_modl: 3}\n"
        "  acts: {step: extract_activations, model: vit, layers: lst}\n"
        "  SAE: 3\n",
        [
            Told(1, 1, "titel", "unknown key", "did you mean 'title'?"),
            Told(2, 1, "seed", "is 'one', expected a whole number"),
            Told(4, 13, "sprites.step", "there is no step", "did you mean 'load_images'?"),
            Told(5, 26, "vit.images", "there is no node", "did you mean 'sprites'?"),
            Told(5, 42, "vit.n_layers", "is 0"),
            Told(5, 55, "vit.d_modl", "no parameter or slot", "did you mean 'd_model'?"),
            Told(6, 3, "acts.images", "is missing"),
            Told(6, 3, "acts.sites", "is missing"),
            Told(6, 49, "acts.layers", "is 'lst'"),
            Told(7, 3, "SAE", "a node's name is lower-case", "for example sae"),
            Told(7, 3, "SAE", "is 3, expected a mapping"),
        ],
    ),
}


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PRISMA_STEPS_STORE", raising=False)


def told(file: str) -> ExperimentError:
    with pytest.raises(ExperimentError) as caught:
        plan_experiment(file, Store(Path("artifacts")))
    return caught.value


@pytest.mark.parametrize("name", FILES)
def test_each_mistake_is_told_once_where_it_stands(name: str) -> None:
    text, expected = FILES[name]
    Path("experiment.yaml").write_text(text)
    problems = told("experiment.yaml").problems
    shown = "\n".join(problem.text("experiment.yaml") for problem in problems)
    assert len(problems) == len(expected), shown
    for problem, wanted in zip(problems, expected, strict=True):
        found = (problem.line, problem.column, problem.where)
        assert found == (wanted.line, wanted.column, wanted.where), shown
        assert wanted.what in problem.what, shown
        assert wanted.hint in problem.hint, shown
        # A user sees YAML and words of the experiment, not Python.
        assert not re.search(r"\b(None|True|False|dict|NoneType|Grid|input should)\b", shown), shown
    assert not Path("ran").exists()
    assert not Path("artifacts").exists()


@pytest.mark.parametrize("count", [1, 3])
def test_text_starts_each_problem_with_a_place_that_editors_jump_to(count: int) -> None:
    Path("experiment.yaml").write_text("".join(f"extra{i}: 1\n" for i in range(count)) + f"nodes:\n{SPRITES}")
    head, *lines = str(told("experiment.yaml")).splitlines()
    assert head == f"experiment.yaml: {count} problem{'s' * (count > 1)}, nothing was run"
    assert [line for line in lines if not line.startswith("    ")] == [
        f"experiment.yaml:{i + 1}:1: extra{i}: unknown key" for i in range(count)
    ]


def test_an_alias_of_plain_data_is_fine() -> None:
    Path("experiment.yaml").write_text(
        "nodes:\n  a: {step: load_images, dataset: digits, seed: {grid: &seeds [0, 1]}}\n"
        "  vit: {step: train_vit, images: a, seed: {grid: *seeds}}\n"
    )
    assert [len(grid) for grid in plan_experiment("experiment.yaml").grids.values()] == [2, 2]


def test_long_values_are_told_in_short() -> None:
    Path("experiment.yaml").write_text(vit(f"n_layers: {list(range(10_000))}"))
    assert len(str(told("experiment.yaml"))) < 400


# --- files that cannot be read


def test_no_such_file_names_the_nearest() -> None:
    Path("quickstart.yaml").write_text("")
    assert (
        told("quickstrat.yaml").text().endswith("there is no such file\n    did you mean 'quickstart.yaml'?")
    )


def test_no_such_experiment_names_the_nearest() -> None:
    Path("experiments").mkdir()
    Path("experiments/quickstart.yaml").write_text("")
    assert told("quickstrat").text().endswith("no such experiment\n    did you mean 'quickstart'?")


def test_no_experiments_at_all() -> None:
    assert "run the command in the folder that holds experiments/" in told("quickstart").text()


def test_a_folder_is_no_experiment() -> None:
    Path("quickstart").mkdir()
    assert "is a folder, expected a YAML file" in told("quickstart").text()


@pytest.mark.parametrize("content", ["nodes: ü".encode("latin-1"), "nodes: {}".encode("utf-16")])
def test_not_utf8(content: bytes) -> None:
    Path("experiment.yaml").write_bytes(content)
    assert "is not UTF-8 text (byte " in told("experiment.yaml").text()


def test_a_folder_of_images_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    Path("images").mkdir()
    Path("images/a.png").touch()
    Path("experiment.yaml").write_text(images("dataset: image_folder, path: images"))
    monkeypatch.setattr("prisma_steps.fingerprint.file_digest", refuse)
    problem = told("experiment.yaml").problems[0]
    assert problem.where == "sprites.path"
    assert problem.what.startswith("cannot be read: Permission denied: ")


# --- through the real commands


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("name", ["tab", "cycle of three", "many mistakes"])
def test_the_command_shows_them_and_exits_with_2(name: str) -> None:
    text, expected = FILES[name]
    Path("experiment.yaml").write_text(text)
    done = run(COMMAND, "plan", "experiment.yaml")
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    for wanted in expected:
        assert f"experiment.yaml:{wanted.line}:{wanted.column}: " in done.stderr
        assert wanted.what in done.stderr
    listed = run(COMMAND, "run", "experiment.yaml", "--json")
    assert listed.returncode == 2
    assert "Traceback" not in listed.stderr
    found = json.loads(listed.stdout)
    assert found["file"] == "experiment.yaml"
    places = [(problem["line"], problem["column"], problem["where"]) for problem in found["problems"]]
    assert places == sorted(wanted[:3] for wanted in expected)


def test_plain_snakemake_shows_them_too() -> None:
    Path("experiment.yaml").write_text(FILES["many mistakes"][0])
    done = run(
        *(sys.executable, "-m", "snakemake", "--snakefile", ROOT / "workflow" / "Snakefile", "--cores", "1"),
        *("--config", "experiment=experiment.yaml"),
    )
    shown = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Traceback" not in shown
    for wanted in FILES["many mistakes"][1]:
        assert f"experiment.yaml:{wanted.line}:{wanted.column}: {wanted.where}: " in shown


# --- mistakes that show only when a step runs


def test_mistakes_that_show_only_in_a_run(
    fresh_checkout: Callable[[Path], Checkout], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a copy of the code: jobs refuse to run code that is edited after they were planned."""
    monkeypatch.setenv("PYTHONPATH", str(fresh_checkout(Path("code").absolute()).folder))
    for folder in ("broken/cats", "empty"):
        Path(folder).mkdir(parents=True)
    Path("broken/cats/cat.png").write_text("meow")
    Path("experiment.yaml").write_text(
        "nodes:\n"
        "  broken: {step: load_images, dataset: image_folder, path: broken}\n"
        "  empty: {step: load_images, dataset: image_folder, path: empty}\n"
        "  digits: {step: load_images, dataset: digits, n_images: 40}\n"
        "  vit: {step: train_vit, images: digits, n_layers: 1, d_model: 8, n_heads: 1, patch_size: 4,\n"
        "        attention_only: true, epochs: 1, batch_size: 20}\n"
        "  acts: {step: extract_activations, model: vit, images: digits, sites: [resid_post]}\n"
        "  sae: {step: train_sae, activations: acts, expansion: 2, k: 17}\n"
        "  neurons: {step: extract_activations, model: vit, images: digits, sites: [mlp_post]}\n"
        "  maps: {figure: attention_maps, activations: acts, images: digits}\n"
    )
    done = run(COMMAND, "run", "experiment.yaml", "--cores", "1")
    told = done.stdout + done.stderr
    assert done.returncode == 1, told
    assert "Traceback" not in told, told
    assert "3 computed, 5 failed" in done.stdout, told
    messages = dict(re.findall(r"^failed (\w+)\n(.*?)\n  log: ", done.stderr, re.MULTILINE | re.DOTALL))
    assert "cats/cat.png" in messages["broken"]
    assert "it must hold image files or folders of them" in messages["empty"]
    assert re.search(r"\bk\b.*17.*16", messages["sae"])
    assert "no site 'mlp_post'" in messages["neurons"]
    assert (
        "its input 'activations' has no pattern, head, query_token, key_token; it has the dims"
        in (messages["maps"])
    )
    assert "(inputs: activations is the node acts, images is the node digits)" in messages["maps"]
