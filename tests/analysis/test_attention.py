"""Attention of known heads, closed forms of uniform attention, and the same numbers by loops."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch

from prisma_steps.analysis.attention import Description, Grid, grid_of, relations, rollout
from tests.models.families import MAKERS, make, pixels_for

#: Float64 sums of a few hundred terms below 1, in another order.
EXACT = {"rtol": 0, "atol": 1e-12}

ROWS, COLUMNS = 3, 4


def grid(prefix: tuple[str, ...] = ("cls", "register"), frames: int = 1) -> Grid:
    """Patches of 8 × 4 pixels, frame by frame and row by row, behind other tokens."""
    frame, row, column = np.indices((frames, ROWS, COLUMNS)).reshape(3, -1)
    before = np.full(len(prefix), -1)
    kind = np.array([*prefix, *["patch"] * row.size])
    places = (np.concatenate([before, values]) for values in (row, column, frame))
    return Grid(kind, *places, (8.0, 4.0))


def random_patterns(tokens: int, n_images: int = 3) -> torch.Tensor:
    """[image, layer, head, query_token, key_token]."""
    generator = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(n_images, 2, 2, tokens, tokens, generator=generator, dtype=torch.float64)
    return scores.softmax(-1)


def described(on: Grid, patterns: torch.Tensor, at_once: int = 2) -> Description:
    description = Description(on, patterns.shape[1])
    for images in patterns.split(at_once):
        for layer in range(patterns.shape[1]):
            description.add(layer, images[:, layer])
    return description


@pytest.mark.parametrize(
    "on", [grid(), grid(("cls", "distillation")), grid(()), grid((), frames=3), grid(("cls",), frames=2)]
)
def test_every_number_by_loops(on):
    patterns = random_patterns(len(on.kind))
    found = described(on, patterns).results()
    of_clips = {"attention_frame_distance"} if on.n_frames > 1 else set()
    assert found.keys() == {
        *("attention_distance", "attention_entropy", "attention_mass", "head_score"),
        *of_clips,
    }
    for layer, head in product(range(2), range(2)):
        expected = by_loops(on, patterns[:, layer, head].numpy())
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][..., layer, head], value, **EXACT, err_msg=name)


def by_loops(on: Grid, patterns: np.ndarray) -> dict[str, np.ndarray | float]:
    """Of one head, [image, query, key]: everything as its docstring says it."""
    tokens, kinds = range(len(on.kind)), list(dict.fromkeys(on.kind.tolist()))
    queries = {"all": list(tokens), **{kind: [t for t in tokens if on.kind[t] == kind] for kind in kinds}}
    patches = queries["patch"]
    weight, distance, frames = 0.0, 0.0, 0.0
    for p in patterns:
        for q, k in product(patches, patches):
            weight += p[q, k]
            distance += p[q, k] * math.dist(
                (8 * on.row[q], 4 * on.column[q]), (8 * on.row[k], 4 * on.column[k])
            )
            frames += p[q, k] * abs(int(on.frame[q]) - int(on.frame[k]))
    found: dict[str, np.ndarray | float] = {"attention_distance": distance / weight}
    if on.n_frames > 1:
        found["attention_frame_distance"] = frames / weight
    found["attention_entropy"] = np.array(
        [
            np.mean([-sum(x * math.log(x) for x in p[q]) for p in patterns for q in members])
            for members in queries.values()
        ]
    )
    found["attention_mass"] = np.array(
        [
            [
                np.mean([sum(p[q, k] for k in queries[kind]) for p in patterns for q in members])
                for kind in kinds
            ]
            for members in queries.values()
        ]
    )
    found["head_score"] = np.array([score(on, patterns, patches, tokens, name) for name in names_of(on)])
    return found


def names_of(on: Grid) -> list[str]:
    names = ["self", "previous_patch", "next_patch", "row", "column", "corner"]
    names += ["cls"] if "cls" in on.kind else []
    return names + (["same_frame", "previous_frame", "next_frame"] if on.n_frames > 1 else [])


def score(on: Grid, patterns: np.ndarray, patches, tokens, name: str) -> float:
    """Mean over images, and over patches that have a key of the relation."""
    given = []
    for q in patches:
        keys = [k for k in tokens if related(on, q, k, name)]
        given += [sum(p[q, k] for k in keys) for p in patterns] if keys else []
    return float(np.mean(given))


def related(on: Grid, q: int, k: int, name: str) -> bool:
    if name == "cls":
        return on.kind[k] == "cls"
    if on.kind[k] != "patch":
        return False
    later = on.frame[k] - on.frame[q]
    return {
        "self": q == k,
        "previous_patch": later == 0 and k == q - 1,
        "next_patch": later == 0 and k == q + 1,
        "row": on.row[q] == on.row[k],
        "column": on.column[q] == on.column[k],
        "corner": on.row[k] in (0, ROWS - 1) and on.column[k] in (0, COLUMNS - 1),
        "same_frame": later == 0,
        "previous_frame": later == -1,
        "next_frame": later == 1,
    }[name]


def one_hot(on: Grid, key_of) -> torch.Tensor:
    """A head whose every query attends to one key, [image, layer, head, query, key]."""
    n_tokens = len(on.kind)
    pattern = torch.zeros(1, 1, 1, n_tokens, n_tokens, dtype=torch.float64)
    for query in range(n_tokens):
        pattern[..., query, key_of(query)] = 1
    return pattern


def scores(on: Grid, pattern: torch.Tensor) -> dict[str, float]:
    found = described(on, pattern).results()["head_score"][:, 0, 0]
    return dict(zip(relations(on), found.tolist(), strict=True))


def test_a_head_that_attends_to_the_previous_patch():
    on = grid()
    pattern = one_hot(on, lambda q: max(q - 1, 2) if q > 1 else q)
    found = described(on, pattern).results()
    of_types = scores(on, pattern)
    assert of_types["previous_patch"] == 1 and of_types["next_patch"] == 0
    assert of_types["self"] == pytest.approx(1 / 12)  # the first, which has none before it
    assert of_types["row"] == pytest.approx(10 / 12)  # all but the first of the second and third row
    # Nine steps of 4 pixels to the left; two back to the end of the row above: 8 up, 12 to the right.
    assert found["attention_distance"].item() == pytest.approx((9 * 4 + 2 * math.hypot(8, 12)) / 12)
    assert (found["attention_entropy"] == 0).all()


def test_a_sink_on_cls_has_no_distance_and_no_warning():
    on = grid()
    found = described(on, one_hot(on, lambda _: 0)).results()
    assert np.isnan(found["attention_distance"]).all()
    masses = found["attention_mass"][..., 0, 0]  # queries: all, cls, register, patch
    assert masses.tolist() == [[1, 0, 0]] * 4
    assert scores(on, one_hot(on, lambda _: 0))["cls"] == 1


def test_cls_that_reads_patches_and_patches_that_read_registers():
    on = grid()
    pattern = one_hot(on, lambda q: 5 if q == 0 else 1)
    masses = described(on, pattern).results()["attention_mass"][..., 0, 0]
    assert masses[1].tolist() == [0, 0, 1] and masses[3].tolist() == [0, 1, 0]
    assert masses[0].tolist() == pytest.approx([0, 13 / 14, 1 / 14])


def test_a_head_that_looks_back_a_frame():
    on = grid((), frames=3)
    found = scores(on, one_hot(on, lambda q: q - 12 if q >= 12 else q))
    assert found["previous_frame"] == 1 and found["next_frame"] == 0
    assert found["same_frame"] == pytest.approx(1 / 3) == found["self"]
    assert found["row"] == found["column"] == 1
    described_ = described(on, one_hot(on, lambda q: q - 12 if q >= 12 else q)).results()
    assert described_["attention_distance"].item() == 0
    assert described_["attention_frame_distance"].item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("on", [grid(), grid((), frames=2)])
def test_uniform_attention_has_its_closed_forms(on):
    n_tokens, n_patches = len(on.kind), int(on.is_patch.sum())
    uniform = torch.full((2, 1, 1, n_tokens, n_tokens), 1 / n_tokens, dtype=torch.float64)
    description = described(on, uniform)
    found, expected = description.results(), description.uniform()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name][..., 0, 0], value, **EXACT, err_msg=name)
    np.testing.assert_allclose(expected["attention_entropy"], math.log(n_tokens), **EXACT)
    assert expected["attention_mass"][0].tolist() == pytest.approx(
        [float((on.kind == kind).sum()) / n_tokens for kind in on.kinds]
    )
    of_types = dict(zip(relations(on), expected["head_score"], strict=True))
    assert of_types["self"] == pytest.approx(1 / n_tokens)
    assert of_types["row"] == pytest.approx(COLUMNS * on.n_frames / n_tokens)
    assert of_types["column"] == pytest.approx(ROWS * on.n_frames / n_tokens)
    assert of_types["corner"] == pytest.approx(4 * on.n_frames / n_tokens)
    assert n_patches == ROWS * COLUMNS * on.n_frames


def test_the_distance_of_uniform_attention_in_a_row_of_patches():
    """Mean distance of two of n points in a line, one step apart: (n² − 1) / 3n."""
    n = 7
    on = Grid(np.array(["patch"] * n), np.zeros(n, int), np.arange(n), np.zeros(n, int), (16.0, 16.0))
    assert Description(on, 1).uniform()["attention_distance"] == pytest.approx(16 * (n * n - 1) / (3 * n))


def test_sums_do_not_depend_on_how_images_come():
    on, patterns = grid(), random_patterns(14, 5)
    whole, one_by_one = (described(on, patterns, size).results() for size in (5, 1))
    for name, value in whole.items():
        np.testing.assert_allclose(value, one_by_one[name], **EXACT)
    assert described(on, patterns, 2).n_images == 5


@pytest.mark.parametrize("name", MAKERS)
def test_the_grid_of_a_model_is_that_of_its_tokens(name):
    vit = make(name)
    on = grid_of(vit)
    tokens = vit.token_coords()
    assert on.patch_size == (4.0, 4.0) and on.kind.tolist() == tokens["token_kind"].tolist()
    assert on.n_frames == (int(tokens["patch_frame"].max()) + 1 if vit.is_video else 1)
    assert on.kinds == list(dict.fromkeys(tokens["token_kind"].tolist()))
    for values in (on.row, on.column, on.frame):
        assert ((values >= 0) == on.is_patch).all()


@pytest.mark.parametrize("name", ["toy mean, registers", "deit", "vivit", "timm"])
def test_patterns_of_a_model_are_described(name):
    vit = make(name, torch.float64)
    on = grid_of(vit)
    cache = vit.read(pixels_for(vit), ["pattern"])
    patterns = torch.stack([cache["pattern", layer].detach() for layer in range(2)], dim=1)
    found = described(on, patterns).results()
    np.testing.assert_allclose(found["attention_mass"].sum(1), 1, **EXACT)
    assert (found["attention_entropy"] > 0).all()
    assert (found["attention_entropy"] <= math.log(len(on.kind))).all()


def test_rollout_is_the_product_of_half_attended_half_kept():
    patterns = random_patterns(5)
    layers = [patterns[:, 0], patterns[:, 1]]
    found = rollout(layers)
    for image in range(3):
        product_ = np.eye(5)
        for layer, rolled in zip(layers, found, strict=True):
            mean = layer[image].numpy().mean(0)
            product_ = (0.5 * mean + 0.5 * np.eye(5)) @ product_
            np.testing.assert_allclose(rolled[image], product_, **EXACT)
    np.testing.assert_allclose(found[-1].sum(-1), 1, **EXACT)


def test_rollout_follows_a_path_through_the_layers():
    """Token 1 reads 0, then 2 reads 1: half of what 2 takes of 1 is of 0."""
    first, second = torch.eye(3).repeat(2, 1, 1, 1, 1)
    first[0, 0, 1] = torch.tensor([1.0, 0, 0])
    second[0, 0, 2] = torch.tensor([0, 1.0, 0])
    rolled = rollout([first, second])[-1][0]
    assert rolled[2].tolist() == [0.25, 0.25, 0.5]
