from __future__ import annotations

import pytest
import xarray as xr

from prisma_steps.figures.attention_by_layer import Params, attention_by_layer
from prisma_steps.job import Job
from prisma_steps.step import StepError

draw = attention_by_layer.__wrapped__


def test_a_point_is_a_head_and_the_line_uniform_attention(attention: xr.Dataset) -> None:
    plot = draw(attention, Params())
    panel = plot.figure.axes[0]
    points, uniform = panel.lines
    expected = [
        (layer, float(attention["attention_distance"].sel(layer=layer, head=head)))
        for layer in range(3)
        for head in range(2)
    ]
    assert list(zip(points.get_xdata(), points.get_ydata(), strict=True)) == expected
    assert set(uniform.get_ydata()) == {15.0}
    assert panel.get_ylabel() == "Mean attention distance (pixel)" and panel.get_ylim()[0] == 0


def test_entropy_is_of_the_queries_asked_for(attention: xr.Dataset) -> None:
    points, uniform = (
        draw(attention, Params(measure="attention_entropy", query_kind="all")).figure.axes[0].lines
    )
    expected = attention["attention_entropy"].sel(query_kind="all").values.ravel()
    assert points.get_ydata().tolist() == expected.tolist() and set(uniform.get_ydata()) == {1.9}


def test_numbers_are_every_head(attention: xr.Dataset) -> None:
    found = attention_by_layer(attention, Params(), Job()).data
    assert found.sizes["point"] == 6 and "over 50 images" in found.attrs["caption"]
    at = found.isel(point=(found["layer"] == 2) & (found["head"] == 1))
    assert at["attention_distance"].item() == attention["attention_distance"].sel(layer=2, head=1).item()


def test_bad_data(attention: xr.Dataset) -> None:
    with pytest.raises(StepError, match="the data has no attention_frame_distance"):
        draw(attention, Params(measure="attention_frame_distance"))
    with pytest.raises(StepError, match="query_kind is 'cls', the data has all, patch"):
        draw(attention, Params(measure="attention_entropy", query_kind="cls"))
