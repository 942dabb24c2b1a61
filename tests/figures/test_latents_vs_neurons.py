from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from prisma_steps.figures.latents_vs_neurons import NEURONS, Params, latents_vs_neurons
from prisma_steps.job import Job
from prisma_steps.step import StepError

draw = latents_vs_neurons.__wrapped__


@pytest.fixture
def latents(quality: xr.Dataset) -> xr.Dataset:
    return quality.isel(layer=0)


@pytest.fixture
def neurons() -> xr.Dataset:
    return xr.Dataset(
        {
            "l0": (("k", "token_kind"), np.array([[16.0, 15.0], [4.0, 3.0], [8.0, 7.0]])),
            "fvu": (("k", "token_kind"), np.array([[0.2, 0.3], [0.8, 0.9], [0.5, 0.6]])),
            "ce_recovered": ("k", np.array([90.0, 20.0, 60.0])),
        },
        coords={"k": [16, 4, 8], "token_kind": ["all", "patch"], "architecture": "neurons"},
    )


@pytest.mark.parametrize(
    ("params", "l0", "y"),
    [
        ({}, [4, 8, 16], [0.8, 0.5, 0.2]),
        ({"token_kind": "patch"}, [3, 7, 15], [0.9, 0.6, 0.3]),
        ({"y": "ce_recovered"}, [4, 8, 16], [20, 60, 90]),
    ],
)
def test_neurons_are_one_line_beside_those_of_the_dictionaries(latents, neurons, params, l0, y) -> None:
    panel = draw(latents, neurons, Params(**params)).figure.axes[0]
    lines = [container.lines[0] for container in panel.containers]
    assert len(lines) == 3
    assert lines[-1].get_color() == NEURONS["color"]
    np.testing.assert_allclose(lines[-1].get_xdata(orig=False), l0)
    np.testing.assert_allclose(lines[-1].get_ydata(orig=False), y)
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["neurons"]


def test_every_panel_has_them(quality, neurons) -> None:
    plot = draw(quality, neurons, Params(columns="layer"))
    ends = [axes.containers[-1].lines[0].get_color() for axes in plot.figure.axes]
    assert ends == [NEURONS["color"]] * 3


def test_numbers_say_what_they_are_of(latents, neurons) -> None:
    found = latents_vs_neurons(latents, neurons, Params(), Job()).data
    of_neurons = found.isel(point=found["basis"].values == "neurons")
    assert (found.sizes["point"], of_neurons.sizes["point"]) == (8 + 3, 3)
    assert sorted(of_neurons["fvu"].values) == [0.2, 0.5, 0.8]
    assert "against L0 of sparse autoencoders and of the neurons" in found.attrs["caption"]


def test_neurons_of_a_larger_grid_are_refused(latents, neurons) -> None:
    layers = xr.concat([neurons, neurons], "layer")
    with pytest.raises(StepError, match=r"has the grid axes layer too. Select a point of each: \{node"):
        draw(latents, layers, Params())
