from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from prisma_steps.figures.attribution_bars import Params, attribution_bars
from prisma_steps.job import Job
from prisma_steps.step import StepError

draw = attribution_bars.__wrapped__


def test_bars_are_the_largest_means_in_their_order(attribution: xr.Dataset) -> None:
    plot = draw(attribution, Params(n=3))
    mean = attribution["logit_contribution"].mean("image")
    largest = sorted(mean.values, key=abs, reverse=True)[:3]
    (panel,) = plot.figure.axes
    bars = sorted((bar.get_y(), bar.get_width()) for bar in panel.patches)
    assert [width for _, width in bars] == pytest.approx(largest)
    names = [text.get_text() for text in panel.get_yticklabels()]
    by_name = {
        str(name).replace("_", " ").replace("mlp", "MLP"): float(mean.sel(component=name))
        for name in mean["component"].values
    }
    assert [by_name[name] for name in names] == pytest.approx(largest)
    low, high = panel.get_ylim()
    assert low > high  # the largest is on top


def test_kinds_share_a_colour(attribution: xr.Dataset) -> None:
    plot = draw(attribution, Params())
    (legend,) = plot.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["head", "MLP", "embedding or bias"]
    colours = {bar.get_facecolor() for bar in plot.figure.axes[0].patches}
    assert len(colours) == 3


def test_numbers_hold_mean_and_error(attribution: xr.Dataset) -> None:
    found = attribution_bars(attribution, Params(), Job()).data
    assert found.sizes["point"] == 5
    values = attribution["logit_contribution"].sel(component="head_0.1")
    at = found.isel(point=found["component"] == "head_0.1")
    assert at["logit_contribution"].item() == pytest.approx(values.mean().item())
    error = at["logit_contribution_standard_error"].item()
    assert error == pytest.approx(np.std(values, ddof=1).item() / 2)
    assert "the 5 largest of 5 components add to the difference of two logits" in found.attrs["caption"]
    total = float(attribution["attributed_logit"].mean())
    assert f"sum to it, {total:.3g} in the mean" in found.attrs["caption"]


def test_one_image_has_no_error_bars(attribution: xr.Dataset) -> None:
    plot = draw(attribution.isel(image=[0]), Params())
    assert "standard error" not in plot.caption and len(plot.numbers) == 5


def test_bad_data(attribution: xr.Dataset) -> None:
    with pytest.raises(StepError, match="attribution_bars: the data has no component_kind"):
        draw(attribution.drop_vars("component_kind"), Params())
