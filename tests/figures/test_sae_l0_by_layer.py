from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from prisma_steps.figures.sae_l0_by_layer import Params, sae_l0_by_layer
from prisma_steps.job import Job
from prisma_steps.step import StepError

draw = sae_l0_by_layer.__wrapped__


@pytest.fixture
def by_layer(quality: xr.Dataset) -> xr.Dataset:
    return quality.isel(architecture=0, sparsity=0)


def test_lines_are_cls_and_patch_tokens_by_layer(by_layer: xr.Dataset) -> None:
    plot = draw(by_layer, Params())
    drawn = [container.lines[0] for container in plot.figure.axes[0].containers]
    assert len(drawn) == 2
    for line, kind in zip(drawn, ["cls", "patch"], strict=True):
        assert line.get_xdata(orig=False).tolist() == [0, 1, 2]
        np.testing.assert_allclose(
            line.get_ydata(orig=False), by_layer["l0"].sel(token_kind=kind).mean("seed")
        )
    assert plot.figure.axes[0].get_yscale() == "log"


def test_layer_set_by_an_axis_of_another_name(by_layer: xr.Dataset) -> None:
    named = by_layer.rename(layer="layers").assign_coords(layers=["first", "third", "last"])
    named = named.assign_coords(layer=("layers", [0, 2, 5]))
    found = sae_l0_by_layer(named, Params(), Job()).data
    assert sorted(set(found["layer"].values.tolist())) == [0, 2, 5]
    at = found.isel(point=(found["layer"] == 2) & (found["token_kind"] == "cls"))
    assert at["l0"].item() == pytest.approx(named["l0"].sel(layers="third", token_kind="cls").mean().item())


def test_other_axes_get_style_and_panels(quality: xr.Dataset) -> None:
    plot = draw(quality, Params(width="two_columns"))
    assert len(plot.figure.axes) == 4
    assert [len(axes.containers) for axes in plot.figure.axes] == [4] * 4
    assert plot.figure.axes[1].get_title() == "l1 coefficient, k: 0.0003, 32"


def test_bad_data(by_layer: xr.Dataset) -> None:
    with pytest.raises(StepError, match="all of one layer"):
        draw(by_layer.isel(layer=0), Params())
    with pytest.raises(StepError, match="has no layer"):
        draw(by_layer.isel(layer=0, drop=True), Params())
    with pytest.raises(StepError, match="no L0 of the token_kind patch"):
        draw(by_layer.sel(token_kind=["all", "cls"]), Params())
    silent = by_layer.assign(l0=by_layer["l0"] * 0)
    with pytest.raises(StepError, match="y_scale: linear"):
        draw(silent, Params())
    assert draw(silent, Params(y_scale="linear")).figure.axes[0].get_yscale() == "linear"


def test_a_crosscoder_has_no_l0_of_a_layer() -> None:
    quality = xr.Dataset(
        {
            "l0": ("token_kind", [3.0, 2.0, 4.0]),
            "fvu": (("layer", "token_kind"), np.full((2, 3), 0.5)),
        },
        coords={"token_kind": ["all", "cls", "patch"], "layer": [0, 1]},
    )
    with pytest.raises(StepError, match="a crosscoder has one L0 for all its layers"):
        draw(quality, Params())
