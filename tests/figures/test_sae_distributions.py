"""Figures of what dictionaries are made of: firing frequencies, states of latents, training."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from prisma_steps.figures.firing_frequencies import Params as FrequencyParams
from prisma_steps.figures.firing_frequencies import firing_frequencies
from prisma_steps.figures.latent_states import Params as StateParams
from prisma_steps.figures.latent_states import latent_states
from prisma_steps.figures.sae_training_curves import Params as TrainingParams
from prisma_steps.figures.sae_training_curves import sae_training_curves
from prisma_steps.job import Job
from prisma_steps.step import StepError


@pytest.fixture
def saes() -> xr.Dataset:
    """Histories and qualities of a grid of dictionaries with 40 latents: architecture × layer × seed."""
    random = np.random.default_rng(8)
    grid = ("architecture", "layer", "seed")
    frequency = 10 ** random.uniform(-3, 0, (2, 3, 2, 40))
    frequency[random.random(frequency.shape) < 0.2] = 0
    alive, dense = (frequency > 0).mean(-1), (frequency > 0.1).mean(-1)
    curves = {
        name: ((*grid, "step"), random.uniform(0.1, 50, (2, 3, 2, 5)))
        for name in ("fvu", "l0", "dead_latents", "loss")
    }
    return xr.Dataset(
        {
            "firing_frequency": ((*grid, "latent"), frequency),
            "alive_latents": (grid, alive),
            "dead_share": (grid, 1 - alive),
            "dense_latents": (grid, dense),
            **curves,
        },
        coords={
            "architecture": ["relu", "topk"],
            "layer": [0, 1, 2],
            "seed": [0, 1],
            "step": [1, 2, 3, 4, 5],
            "tokens_seen": ("step", [100, 200, 300, 400, 500]),
        },
    )


def test_bins_hold_all_latents_of_all_seeds(saes: xr.Dataset) -> None:
    found = firing_frequencies(saes[["firing_frequency"]], FrequencyParams(columns="layer"), Job()).data
    table = found.to_dataframe()
    for (architecture, layer), of_point in table.groupby(["architecture", "layer"]):
        values = saes["firing_frequency"].sel(architecture=architecture, layer=layer).values
        assert of_point["latents_in_bin"].sum() == values.size
        assert of_point["share_in_bin"].sum() == pytest.approx(100)
        dead = of_point[of_point["bin"] == -1]
        assert dead["latents_in_bin"].item() == (values == 0).sum()
        dense = of_point[of_point["frequency_from"] >= 0.0999]
        assert dense["latents_in_bin"].sum() == (values >= 0.1).sum()


def test_stored_data_may_be_lazy(saes: xr.Dataset) -> None:
    lazy = firing_frequencies.__wrapped__(saes.chunk(layer=1), FrequencyParams(columns="layer"))
    eager = firing_frequencies.__wrapped__(saes, FrequencyParams(columns="layer"))
    assert lazy.numbers.equals(eager.numbers)


def test_the_dead_have_a_bar_with_their_number_and_dense_a_line(saes: xr.Dataset) -> None:
    one = saes.sel(layer=1)
    panel = firing_frequencies.__wrapped__(one, FrequencyParams()).figure.axes[0]
    numbers = [text.get_text() for text in panel.texts]
    assert numbers == [
        str((one["firing_frequency"].sel(architecture=a) == 0).sum().item()) for a in ("relu", "topk")
    ]
    assert -1.0 in [line.get_xdata()[0] for line in panel.lines]
    assert panel.get_ylabel() == "Share of the latents (%)"
    assert "dead" in [label.get_text() for label in panel.get_xticklabels()]


def test_frequencies_that_are_not_there(saes: xr.Dataset) -> None:
    with pytest.raises(StepError, match="firing_frequencies: the data has no firing_frequency"):
        firing_frequencies.__wrapped__(saes.drop_vars("firing_frequency"), FrequencyParams())
    with pytest.raises(StepError, match="no latent of any dictionary fires"):
        firing_frequencies.__wrapped__(saes[["firing_frequency"]] * 0, FrequencyParams())


def test_bars_are_the_shares_of_states_and_add_up(saes: xr.Dataset) -> None:
    plot = latent_states.__wrapped__(saes, StateParams(along="layer"))
    assert [axes.get_title() for axes in plot.figure.axes] == ["architecture: relu", "architecture: topk"]
    for panel, architecture in zip(plot.figure.axes, ("relu", "topk"), strict=True):
        bars = [container for container in panel.containers if hasattr(container, "patches")]
        heights = [[bar.get_height() for bar in container] for container in bars]
        mean = 100 * saes.sel(architecture=architecture).mean("seed")
        np.testing.assert_allclose(heights[0], mean["dead_share"])
        np.testing.assert_allclose(heights[2], mean["dense_latents"])
        np.testing.assert_allclose(np.sum(heights, 0), 100)
    assert "40 latents" in plot.caption


def test_states_need_an_axis(saes: xr.Dataset) -> None:
    with pytest.raises(StepError, match="of one dictionary, and bars stand along a grid axis"):
        latent_states.__wrapped__(saes.isel(architecture=0, layer=0), StateParams())
    with pytest.raises(StepError, match="along is 'k', but the grid axes are architecture, layer"):
        latent_states.__wrapped__(saes, StateParams(along="k"))
    many = saes.expand_dims(expansion=[4, 8])
    with pytest.raises(StepError, match="bars show two grid axes"):
        latent_states.__wrapped__(many, StateParams())


def test_curves_are_means_over_seeds_by_tokens(saes: xr.Dataset) -> None:
    plot = sae_training_curves.__wrapped__(saes.isel(layer=0), TrainingParams())
    assert [axes.get_ylabel() for axes in plot.figure.axes] == [
        "FVU",
        "L0 (latent/token)",
        "Dead latents",
        "Loss",
    ]
    for panel, name in zip(plot.figure.axes, ("fvu", "l0", "dead_latents", "loss"), strict=True):
        for line, architecture in zip(panel.lines, ("relu", "topk"), strict=True):
            expected = saes[name].isel(layer=0).sel(architecture=architecture).mean("seed")
            assert line.get_xdata().tolist() == [100, 200, 300, 400, 500]
            np.testing.assert_allclose(line.get_ydata(), expected)
        assert len(panel.collections) == 2  # bands
    assert "40 latents" in plot.caption


def test_rows_by_axis_and_what_has_no_history(saes: xr.Dataset) -> None:
    plot = sae_training_curves.__wrapped__(saes, TrainingParams(columns="layer", curves=["fvu", "l0"]))
    assert [axes.get_title("left") for axes in plot.figure.axes] == [
        "layer: 0",
        "",
        "layer: 1",
        "",
        "layer: 2",
        "",
    ]
    with pytest.raises(StepError, match="sae_training_curves: the data has no fvu"):
        sae_training_curves.__wrapped__(saes.drop_vars("fvu"), TrainingParams())
