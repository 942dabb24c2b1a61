from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from prisma_steps.figures.style import house_style
from prisma_steps.figures.training_curves import Params, training_curves
from prisma_steps.job import Job
from prisma_steps.step import StepError

draw = training_curves.__wrapped__


def test_lines_are_the_means_over_seeds(models: xr.Dataset) -> None:
    with house_style():
        plot = draw(models, Params())
    accuracy, loss = plot.figure.axes
    mean = models.mean("seed")
    drawn = [line for line in accuracy.lines if len(line.get_xdata()) == 4]
    assert len(drawn) == 4
    expected = {
        tuple(mean["test_accuracy_history"].sel(n_layers=n, attention_only=a).values)
        for n in (1, 4)
        for a in (False, True)
    }
    assert {tuple(line.get_ydata()) for line in drawn} == expected
    assert all(line.get_xdata().tolist() == [1.0, 2.0, 3.0, 4.0] for line in drawn)
    assert len(accuracy.collections) == len(loss.collections) == 4  # bands


def test_chance_is_that_of_the_classes(models: xr.Dataset) -> None:
    plot = draw(models, Params())
    levels = [axes.lines[-1].get_ydata()[0] for axes in plot.figure.axes]
    assert levels == [1 / 4, np.log(4)]


def test_numbers_are_what_is_drawn(models: xr.Dataset) -> None:
    found = training_curves(models, Params(), Job()).data
    assert found.sizes["point"] == 16
    point = found.isel(point=(found["n_layers"] == 4) & ~found["attention_only"] & (found["step"] == 30))
    seeds = models["test_loss"].sel(n_layers=4, attention_only=False, step=30)
    assert point["epoch"].item() == 3.0
    assert point["test_loss"].item() == pytest.approx(seeds.mean().item())
    assert point["test_loss_standard_error"].item() == pytest.approx(seeds.std(ddof=1).item() / 3**0.5)
    assert "Mean of 3 seeds" in found.attrs["caption"]


def test_one_model(models: xr.Dataset) -> None:
    found = training_curves(models.isel(n_layers=0, attention_only=0, seed=0), Params(), Job()).data
    assert found.sizes["point"] == 4
    assert "seeds" not in found.attrs["caption"]


def test_curve_that_was_not_measured_at_every_step(models: xr.Dataset) -> None:
    one = models.isel(n_layers=0, attention_only=0, seed=0)
    one["test_loss"][1] = np.nan
    loss = draw(one, Params()).figure.axes[1]
    assert loss.lines[0].get_xdata().tolist() == [1.0, 3.0, 4.0]


def test_panels_by_axis(models: xr.Dataset) -> None:
    plot = draw(models, Params(columns="n_layers", curves=["test_loss"]))
    assert [axes.get_title() for axes in plot.figure.axes] == ["n layers: 1", "n layers: 4"]


def test_curves_that_are_none(models: xr.Dataset) -> None:
    with pytest.raises(StepError, match="has no train_loss"):
        draw(models, Params(curves=["train_loss"]))
    final = models.assign(test_accuracy=models["test_loss"].isel(step=-1, drop=True))
    with pytest.raises(StepError, match="test_accuracy has no dim 'step'"):
        draw(final, Params(curves=["test_accuracy"]))
