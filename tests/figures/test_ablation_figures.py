from __future__ import annotations

import numpy as np
import pytest

from prisma_steps import schema
from prisma_steps.figures.ablation_bars import Params as BarParams
from prisma_steps.figures.ablation_bars import ablation_bars
from prisma_steps.figures.ablation_heatmap import Params as MapParams
from prisma_steps.figures.ablation_heatmap import ablation_heatmap
from prisma_steps.job import Job
from prisma_steps.step import StepError

draw_bars, draw_heads = ablation_bars.__wrapped__, ablation_heatmap.__wrapped__
LAYERS = schema.example(schema.Ablation)
HEADS = schema.example(schema.Ablation, cells=("head",))


def test_a_bar_for_every_layer_and_ablation() -> None:
    plot = draw_bars(LAYERS, BarParams())
    (panel,) = plot.figure.axes
    bars = [found for found in panel.containers if hasattr(found, "datavalues")]
    for kind, of_kind in zip(LAYERS["ablation"].values, bars, strict=True):
        expected = LAYERS["ce_increase"].sel(ablation=kind).values
        np.testing.assert_array_equal(of_kind.datavalues, expected)
        error = LAYERS["ce_increase_standard_error"].sel(ablation=kind).values
        (segments,) = [lines.get_segments() for lines in of_kind.errorbar.lines[2]]
        ends = [[y for _, y in segment] for segment in segments]
        np.testing.assert_allclose(ends, np.stack([expected - error, expected + error], 1))
    # The group of a layer is in the middle above its number.
    middles = np.mean([[bar.get_x() + bar.get_width() / 2 for bar in of_kind] for of_kind in bars], 0)
    np.testing.assert_allclose(middles, [0, 1], atol=1e-12)  # sums of three floats near 1
    assert panel.get_ylabel() == "Increase of the CE by the ablation (nat)"
    assert [text.get_text() for text in plot.figure.legends[0].get_texts()] == ["zero", "mean", "resample"]
    assert "attention output added to the residual stream at all tokens, replaced by zeros or" in plot.caption
    assert "bars ± 1 standard error over images" in plot.caption


def test_the_plain_run_is_a_line() -> None:
    plot = draw_bars(LAYERS, BarParams(measure="top1_ablated"))
    assert set(plot.figure.axes[0].lines[0].get_ydata()) == {0.9}
    assert plot.caption.endswith("Dashed: the plain run.") and "standard error" not in plot.caption
    found = ablation_bars(LAYERS, BarParams(measure="top1_ablated"), Job()).data
    assert found["top1"].values.tolist() == [0.9] * 6
    assert found["top1_ablated"].values.tolist() == LAYERS["top1_ablated"].values.ravel().tolist()


@pytest.mark.parametrize("width", ["one_column", "two_columns"])
def test_a_panel_of_heads_for_every_ablation(width: str) -> None:
    plot = draw_heads(HEADS.transpose("head", ...), MapParams(width=width))
    *panels, bar = plot.figure.axes
    assert [panel.get_title() for panel in panels] == ["zero", "mean", "resample"]
    for panel, kind in zip(panels, HEADS["ablation"].values, strict=True):
        np.testing.assert_array_equal(panel.images[0].get_array(), HEADS["ce_increase"].sel(ablation=kind))
    strongest = abs(HEADS["ce_increase"]).max().item()
    assert {panel.images[0].get_clim() for panel in panels} == {(-strongest, strongest)}
    assert bar.get_xlabel() == "Increase of the CE by the ablation (nat), n = 50 images"
    error = HEADS["ce_increase_standard_error"].max().item()
    assert f"standard error at most {error:.2g}" in plot.caption


def test_each_is_for_its_own_data() -> None:
    with pytest.raises(StepError, match="of heads, one by one. Draw it with ablation_heatmap"):
        draw_bars(HEADS, BarParams())
    with pytest.raises(StepError, match="of whole layers. Draw it with ablation_bars"):
        draw_heads(LAYERS, MapParams())
    with pytest.raises(StepError, match="ablation_bars: its input 'ablation' has no ce_increase"):
        ablation_bars(LAYERS.drop_vars("ce_increase"), BarParams(), Job())
