from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from prisma_steps.figures.sae_pareto import Params, sae_pareto
from prisma_steps.job import Job
from prisma_steps.step import StepError

draw = sae_pareto.__wrapped__


@pytest.fixture
def one_layer(quality: xr.Dataset) -> xr.Dataset:
    return quality.isel(layer=0)


@pytest.mark.parametrize("token_kind", ["all", "cls", "patch"])
def test_points_are_the_means_over_seeds(one_layer: xr.Dataset, token_kind: str) -> None:
    plot = draw(one_layer, Params(token_kind=token_kind))
    mean = one_layer.sel(token_kind=token_kind).mean("seed")
    drawn = [container.lines[0] for container in plot.figure.axes[0].containers]
    assert len(drawn) == 2
    for line, architecture in zip(drawn, ["relu", "topk"], strict=True):
        expected = mean.sel(architecture=architecture)
        order = np.argsort(expected["l0"].values)
        np.testing.assert_allclose(line.get_xdata(orig=False), expected["l0"].values[order])
        np.testing.assert_allclose(line.get_ydata(orig=False), expected["fvu"].values[order])


def test_error_bars_are_standard_errors(one_layer: xr.Dataset) -> None:
    plot = draw(one_layer.sel(architecture="relu", sparsity=[2]), Params())
    container = plot.figure.axes[0].containers[0]
    across, up = (lines.get_segments()[0] for lines in container.lines[2])
    seeds = one_layer.sel(architecture="relu", sparsity=2, token_kind="all")
    for bar, name, place in ((across, "l0", 0), (up, "fvu", 1)):
        expected = seeds[name].std(ddof=1).item() / 2**0.5
        assert np.ptp(bar[:, place]) / 2 == pytest.approx(expected)


def test_numbers_name_every_parameter(one_layer: xr.Dataset) -> None:
    found = sae_pareto(one_layer, Params(), Job()).data
    assert found.sizes["point"] == 8
    assert {"architecture", "sparsity", "l1_coefficient", "k", "l0", "fvu", "fvu_standard_error"} <= set(
        found
    )
    assert "Mean of 2 seeds" in found.attrs["caption"]


def test_axes_are_named_with_units(one_layer: xr.Dataset) -> None:
    axes = draw(one_layer, Params()).figure.axes[0]
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", "L0 (latent/token)", "FVU")
    axes = draw(one_layer, Params(y="ce_recovered")).figure.axes[0]
    assert axes.get_ylabel() == "CE recovered (%)"


def test_lines_run_along_the_axis_that_is_named(quality: xr.Dataset) -> None:
    plot = draw(quality.sel(architecture="relu", sparsity=[0, 1]), Params(along="layer"))
    assert [len(container.lines[0].get_xdata()) for container in plot.figure.axes[0].containers] == [3, 3]


def test_points_without_a_sparsity_axis_are_not_joined(quality: xr.Dataset) -> None:
    plot = draw(quality.isel(sparsity=0), Params())
    assert {container.lines[0].get_linestyle() for container in plot.figure.axes[0].containers} == {"None"}


def test_a_crosscoder_has_a_point_for_each_layer() -> None:
    quality = xr.Dataset(
        {
            "l0": (("k", "token_kind"), [[3.0], [6.0]]),
            "fvu": (("k", "layer", "token_kind"), [[[0.5], [0.7]], [[0.2], [0.4]]]),
        },
        coords={"token_kind": ["all"], "layer": [4, 9], "k": [3, 6]},
    )
    lines = [container.lines[0] for container in draw(quality, Params()).figure.axes[0].containers]
    assert [line.get_xdata(orig=False).tolist() for line in lines] == [[3, 6], [3, 6]]
    assert [line.get_ydata(orig=False).tolist() for line in lines] == [[0.5, 0.2], [0.7, 0.4]]


def test_bad_data(one_layer: xr.Dataset) -> None:
    with pytest.raises(StepError, match="has no fvu"):
        draw(one_layer.drop_vars("fvu"), Params())
    with pytest.raises(StepError, match="token_kind is 'cls', the data has all"):
        draw(one_layer.sel(token_kind=["all"]), Params(token_kind="cls"))
    with pytest.raises(StepError, match="along is 'width', but the grid axes are architecture, sparsity"):
        draw(one_layer, Params(along="width"))
    with pytest.raises(StepError, match="L0 of some dictionaries is 0 or missing"):
        draw(one_layer.assign(l0=one_layer["l0"] * [0, 1, 1]), Params())


def test_each_measure_has_a_row(one_layer: xr.Dataset) -> None:
    plot = draw(one_layer, Params(y=["fvu", "ce_recovered"]))
    assert [axes.get_ylabel() for axes in plot.figure.axes] == ["FVU", "CE recovered (%)"]
    mean = one_layer.sel(token_kind="all", architecture="relu").mean("seed").sortby("l0")
    for panel, measure in zip(plot.figure.axes, ("fvu", "ce_recovered"), strict=True):
        np.testing.assert_allclose(panel.containers[0].lines[0].get_ydata(orig=False), mean[measure])
    assert plot.caption.startswith("FVU and CE recovered (%) against L0")
    with pytest.raises(ValueError, match="each once"):
        Params(y=["fvu", "fvu"])
