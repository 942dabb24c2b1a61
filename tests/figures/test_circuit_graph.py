from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from matplotlib.patches import FancyBboxPatch, PathPatch

from prisma_steps.figures.circuit_graph import INPUTS, NODE, Params, circuit_graph
from prisma_steps.job import Job
from prisma_steps.step import StepError

draw = circuit_graph.__wrapped__


def planted(circuit: xr.Dataset, edges: dict[tuple[str, str], float]) -> xr.Dataset:
    """The fixture with a circuit of some edges with scores in place of that of 6 edges."""
    found = circuit.copy(deep=True)
    found["in_circuit"].loc[{"n_edges": 6}] = False
    for (source, target), score in edges.items():
        found["in_circuit"].loc[{"n_edges": 6, "source": source, "target": target}] = True
        found["score"].loc[{"source": source, "target": target}] = score
    return found


EDGES = {
    ("embed", "head 0.1.v"): -2.0,
    ("embed", "mlp 0"): 0.5,
    ("head 0.1", "head 1.0.k"): -1.0,
    ("mlp 0", "logits"): 0.25,
    ("head 1.0", "logits"): -0.5,
}


def test_only_nodes_of_the_circuit_are_drawn_each_layer_above_the_one_before(circuit: xr.Dataset) -> None:
    panel = draw(planted(circuit, EDGES), Params(n_edges=6)).figure.axes[0]
    place = {text.get_text(): text.get_position() for text in panel.texts if text.get_text() not in INPUTS}
    assert set(place) == {"embed", "0.1", "MLP 0", "1.0", "logits", "Layer 0", "Layer 1"}
    heights = [place[name][1] for name in ("embed", "0.1", "MLP 0", "1.0", "logits")]
    assert heights == sorted(heights)
    assert len(set(heights)) == 5
    assert sum(isinstance(patch, FancyBboxPatch) for patch in panel.patches) == 5


def test_width_grows_with_the_score_and_colour_is_its_sign(circuit: xr.Dataset) -> None:
    edges = {**EDGES, ("head 1.0", "logits"): -0.75}  # no two of one |score|
    panel = draw(planted(circuit, edges), Params(n_edges=6)).figure.axes[0]
    patches = [patch for patch in panel.patches if isinstance(patch, PathPatch)]
    scores = np.array(sorted(edges.values(), key=abs))
    widths = np.array([patch.get_linewidth() for patch in patches])
    np.testing.assert_allclose(np.diff(widths) / np.diff(abs(scores)), (3.2 - 0.4) / 2.0)
    reddish = [patch.get_edgecolor()[0] > patch.get_edgecolor()[2] for patch in patches]
    assert reddish == (scores > 0).tolist()


def test_an_edge_enters_the_input_that_reads_it(circuit: xr.Dataset) -> None:
    edges = {("embed", "head 0.0.q"): 1.0, ("head 0.0", "logits"): 2.0}
    panel = draw(planted(circuit, edges), Params(n_edges=6)).figure.axes[0]
    place = {text.get_text(): text.get_position() for text in panel.texts}
    assert "k" not in place and "v" not in place
    first, _ = (patch.get_path().vertices for patch in panel.patches if isinstance(patch, PathPatch))
    x, y = place["0.0"][0], place["q"][1] + 0.06
    np.testing.assert_allclose(first[-1], [x + INPUTS["q"] * NODE[0], y - NODE[1] / 2])
    np.testing.assert_allclose(first[0][0], place["embed"][0])


def test_numbers_and_caption(circuit: xr.Dataset) -> None:
    found = circuit_graph(planted(circuit, EDGES), Params(n_edges=6), Job()).data
    rows = zip(*(found[name].values.tolist() for name in ("source", "target", "score")), strict=True)
    assert {(source, target): score for source, target, score in rows} == EDGES
    caption = found.attrs["caption"]
    assert (
        "Circuit of 5 of the 46 edges of the graph (1 more lead nowhere) with edges scored by EAP-IG"
        in caption
    )
    assert "mean over 32 pairs" in caption
    for ablation in ("corrupted", "zero"):
        faithful = float(circuit["faithfulness"].sel(n_edges=6, ablation=ablation))
        assert f"{faithful:.2f} ({ablation})" in caption


def test_it_fits_the_page() -> None:
    """Sixteen heads in one layer are wider than a column: boxes and text shrink alike."""
    n_heads = 16
    sources = ["embed", *(f"head 0.{head}" for head in range(n_heads))]
    targets = [*(f"head 0.{head}.{name}" for head in range(n_heads) for name in "qkv"), "logits"]
    edges = np.zeros((len(sources), len(targets)), bool)
    edges[0, :-1:3] = edges[1:, -1] = True
    wide = xr.Dataset(
        {
            "score": (("source", "target"), np.where(edges, 1.0, np.nan)),
            "in_circuit": (("n_edges", "source", "target"), edges[None]),
        },
        {"source": sources, "target": targets, "n_edges": [32]},
    )
    for width, inches in (("one_column", 3.5), ("two_columns", 7.2)):
        panel = draw(wide, Params(n_edges=32, width=width)).figure.axes[0]
        boxes = [patch.get_bbox() for patch in panel.patches if isinstance(patch, FancyBboxPatch)]
        assert min(box.x0 for box in boxes) > 0
        assert max(box.x1 for box in boxes) < inches
        row = sorted((box for box in boxes if box.y0 == boxes[1].y0), key=lambda box: box.x0)
        assert len(row) == n_heads
        assert all(one.x1 < other.x0 for one, other in zip(row, row[1:], strict=False))


def test_bad_data(circuit: xr.Dataset) -> None:
    with pytest.raises(StepError, match="n_edges is 5, and the node has circuits of 2, 6, 12 edges"):
        draw(circuit, Params(n_edges=5))
    with pytest.raises(StepError, match="circuit_graph: the data has no in_circuit"):
        draw(circuit.drop_vars("in_circuit"), Params(n_edges=6))
    with pytest.raises(StepError, match="none is on a path from embedding to logits"):
        draw(planted(circuit, {}), Params(n_edges=6))
