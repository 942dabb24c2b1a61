from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from prisma_steps.figures.patch_grid import on_grid, others
from prisma_steps.figures.patching_heatmap import Params, patching_heatmap
from prisma_steps.step import Job, StepError

draw = patching_heatmap.__wrapped__


def test_panels_are_the_means_over_pairs(patching: xr.Dataset) -> None:
    panels = [axes for axes in draw(patching, Params()).figure.axes if axes.get_title()]
    assert [panel.get_title() for panel in panels] == ["Layer 0", "Layer 1", "Layer 2"]
    mean = patching["normalised_logit_difference"].mean("pair").values
    for panel, expected in zip(panels, mean, strict=True):
        patches, cls = (image.get_array() for image in panel.images)
        np.testing.assert_allclose(patches, expected[1:].reshape(2, 3))
        np.testing.assert_allclose(cls, [[expected[0]]])


@pytest.mark.parametrize(("direction", "centre"), [("denoising", 0.0), ("noising", 1.0)])
def test_colours_are_centred_on_no_effect(patching: xr.Dataset, direction: str, centre: float) -> None:
    plot = draw(patching.assign_attrs(direction=direction), Params())
    norms = [image.norm for axes in plot.figure.axes[:3] for image in axes.images]
    reach = abs(patching["normalised_logit_difference"].mean("pair") - centre).max().item()
    assert {(norm.vmin, norm.vmax) for norm in norms} == {(centre - reach, centre + reach)}


def test_no_panel_is_empty(patching: xr.Dataset) -> None:
    deep = xr.concat([patching.assign_coords(layer=patching["layer"] + 3 * n) for n in range(3)], "layer")
    for width, rows in (("one_column", 3), ("two_columns", 2)):
        plot = draw(deep.isel(layer=slice(8)), Params(width=width))
        panels = [axes for axes in plot.figure.axes if axes.get_title()]
        assert len(panels) == 8 == len(plot.figure.axes) - 1
        assert all(len(panel.images) == 2 for panel in panels)
        assert len({panel.get_subplotspec().rowspan.start for panel in panels}) == rows


def test_numbers_hold_mean_error_and_place(patching: xr.Dataset) -> None:
    found = patching_heatmap(patching, Params(), Job()).data
    assert found.sizes["point"] == 21
    at = found.isel(point=(found["layer"] == 1) & (found["patch_row"] == 1) & (found["patch_col"] == 0))
    pairs = patching["normalised_logit_difference"].sel(layer=1, token=4)
    assert at["token"].item() == 4
    assert at["normalised_logit_difference"].item() == pytest.approx(pairs.mean().item())
    error = at["normalised_logit_difference_standard_error"].item()
    assert error == pytest.approx(pairs.std(ddof=1).item() / 5**0.5)
    assert "from the clean run in the corrupted run. Mean over 5 pairs" in found.attrs["caption"]


def test_bad_data(patching: xr.Dataset) -> None:
    with pytest.raises(StepError, match="has no pair"):
        draw(patching.isel(pair=0, drop=True), Params())
    with pytest.raises(StepError, match="has no patch_row"):
        draw(patching.drop_vars("patch_row"), Params())
    with pytest.raises(StepError, match="'direction' is None, expected denoising or noising"):
        draw(patching.drop_attrs(), Params())


def test_tokens_lie_where_their_labels_say(patching: xr.Dataset) -> None:
    values = patching["logit_difference"].isel(pair=0, layer=0).copy(data=np.arange(7.0))
    shuffled = values.isel(token=[3, 0, 6, 1, 5, 2, 4])
    assert on_grid(shuffled).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert others(shuffled).values.tolist() == [0]
