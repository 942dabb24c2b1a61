from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from prisma_steps.figures.head_types import Params, head_types
from prisma_steps.job import Job
from prisma_steps.step import StepError

draw = head_types.__wrapped__


@pytest.mark.parametrize("width", ["one_column", "two_columns"])
def test_panels_are_the_scores_on_one_scale(attention: xr.Dataset, width: str) -> None:
    plot = draw(attention.transpose("head", ...), Params(width=width))
    panels = plot.figure.axes[:4]
    assert [panel.get_title() for panel in panels] == [
        *("self (0.1)", "row (0.3)", "column (0.2)", "CLS (0.1)")
    ]
    for panel, name in zip(panels, attention["head_type"].values, strict=True):
        expected = attention["head_score"].sel(head_type=name)
        np.testing.assert_array_equal(panel.images[0].get_array(), expected)
    limits = {image.get_clim() for panel in panels for image in panel.images}
    assert limits == {(0.0, float(attention["head_score"].max()))}
    assert len(plot.figure.axes) == 5  # and the colour bar


def test_numbers_are_every_head_and_type(attention: xr.Dataset) -> None:
    found = head_types(attention, Params(), Job()).data
    assert found.sizes["point"] == 24
    where = (found["layer"] == 2) & (found["head"] == 1) & (found["head_type"] == "row")
    expected = attention["head_score"].sel(layer=2, head=1, head_type="row")
    assert found.isel(point=where)["head_score"].item() == expected.item()
    assert found.isel(point=where)["uniform_head_score"].item() == 0.3


def test_bad_data(attention: xr.Dataset) -> None:
    with pytest.raises(StepError, match="head_types: the data has no head_score"):
        draw(attention.drop_vars("head_score"), Params())
