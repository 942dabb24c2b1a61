from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from prisma_steps.figures.metric_by_axis import Params, metric_by_axis
from prisma_steps.job import Job
from prisma_steps.step import StepError

draw = metric_by_axis.__wrapped__
BY_LAYERS = Params(variable="test_accuracy", along="n_layers")


@pytest.fixture
def cells(models: xr.Dataset) -> xr.Dataset:
    """What a grid of models reaches: n_layers × attention_only × seed."""
    reached = models["test_accuracy_history"].isel(step=-1, drop=True)
    return models.assign(test_accuracy=reached.assign_attrs(long_name="test accuracy", units="1"))


def lines(plot) -> list[list[tuple[float, float]]]:
    """The points of each line, in the order in which they were drawn."""
    return [
        list(zip(*map(np.ndarray.tolist, container.lines[0].get_data()), strict=True))
        for axes in plot.figure.axes
        for container in axes.containers
    ]


def bars(plot) -> list[np.ndarray]:
    """Half the lengths of the error bars of each line."""
    drawn = [
        container.lines[2][0].get_segments() for axes in plot.figure.axes for container in axes.containers
    ]
    return [np.array([(high - low) / 2 for (_, low), (_, high) in segments]) for segments in drawn]


def test_lines_are_means_over_seeds_and_bars_their_standard_errors(cells: xr.Dataset) -> None:
    plot = draw(cells, BY_LAYERS)
    mean = cells["test_accuracy"].mean("seed")
    expected = [
        [(n, mean.sel(n_layers=n, attention_only=kind).item()) for n in (1, 4)] for kind in (False, True)
    ]
    assert lines(plot) == expected
    error = cells["test_accuracy"].std("seed", ddof=1) / 3**0.5
    for found, kind in zip(bars(plot), (False, True), strict=True):
        np.testing.assert_allclose(found, error.sel(attention_only=kind), rtol=1e-12)


def test_axes_say_what_they_show(cells: xr.Dataset) -> None:
    plot = draw(cells, Params(variable="test_accuracy", along="n_layers", level=1 / 3))
    (axes,) = plot.figure.axes
    assert axes.get_xlabel() == "Number of layers" and axes.get_ylabel() == "Test accuracy"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "4"]
    assert axes.get_xticks().tolist() == [1, 4]
    assert axes.lines[-1].get_ydata()[0] == 1 / 3
    assert [text.get_text() for text in axes.texts] == ["chance"]
    legend = [text.get_text() for text in plot.figure.legends[0].get_texts()]
    assert legend == ["attention only", "false", "true"]
    assert plot.caption == (
        "Test accuracy by number of layers. Dotted: chance. Mean of 3 seeds, bars ± 1 standard error."
    )


def test_numbers_are_what_is_drawn(cells: xr.Dataset) -> None:
    found = metric_by_axis(cells, BY_LAYERS, Job()).data
    assert found.sizes["point"] == 4
    one = found.isel(point=(found["n_layers"] == 4) & found["attention_only"])
    seeds = cells["test_accuracy"].sel(n_layers=4, attention_only=True)
    assert one["test_accuracy"].item() == pytest.approx(seeds.mean().item())
    assert one["test_accuracy_standard_error"].item() == pytest.approx(seeds.std(ddof=1).item() / 3**0.5)


def test_an_axis_of_names_has_its_values_side_by_side(cells: xr.Dataset) -> None:
    plot = draw(cells, Params(variable="test_accuracy", along="attention_only"))
    (axes,) = plot.figure.axes
    assert [[x for x, _ in line] for line in lines(plot)] == [[0, 1], [0, 1]]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["false", "true"]


def test_seeds_can_be_the_axis(cells: xr.Dataset) -> None:
    plot = draw(cells, Params(variable="test_accuracy", along="seed"))
    assert [[x for x, _ in line] for line in lines(plot)] == [[0, 1, 2]] * 4
    assert "Mean" not in plot.caption
    assert lines(plot)[0] == list(
        enumerate(cells["test_accuracy"].sel(n_layers=1, attention_only=False).values.tolist())
    )


def test_another_dim_may_be_averaged_and_what_lies_in_no_frame_is_cls() -> None:
    values = np.random.default_rng(0).normal(size=(9, 2, 3))
    data = xr.Dataset(
        {
            "probability": (
                ("pair", "layer", "patch_frame"),
                values,
                {"long_name": "probability", "units": "1"},
            )
        },
        {"pair": range(9), "layer": [0, 1], "patch_frame": [-1, 0, 1]},
    )
    plot = draw(data, Params(variable="probability", along="patch_frame", over="pair"))
    for layer in (0, 1):
        aside, line = lines(plot)[2 * layer : 2 * layer + 2]
        assert [*aside, *line] == list(zip([-1, 0, 1], values[:, layer].mean(0), strict=True))
        assert len(aside) == 1
        errors = np.concatenate(bars(plot)[2 * layer : 2 * layer + 2])
        np.testing.assert_allclose(errors, values[:, layer].std(0, ddof=1) / 3, rtol=1e-12)
    assert plot.figure.axes[0].get_xlabel() == "Frame"
    assert [tick.get_text() for tick in plot.figure.axes[0].get_xticklabels()] == ["CLS", "0", "1"]
    assert plot.caption.endswith("Mean of 9 pairs, bars ± 1 standard error.")


def test_points_that_are_missing_leave_the_others(cells: xr.Dataset) -> None:
    one = cells.isel(attention_only=0, seed=0)
    one["test_accuracy"][0] = np.nan
    assert [[x for x, _ in line] for line in lines(draw(one, BY_LAYERS))] == [[4]]


def test_many_numbers_have_round_ticks() -> None:
    data = xr.Dataset({"loss": ("k", np.linspace(1, 0, 20))}, {"k": np.arange(20) * 7})
    (axes,) = draw(data, Params(variable="loss", along="k")).figure.axes
    assert len(axes.get_xticks()) < 20
    assert axes.containers[0].lines[0].get_xdata().tolist() == (np.arange(20) * 7).tolist()


def test_ticks_between_whole_numbers_are_for_numbers_that_are_not_whole() -> None:
    for along, whole in ((np.arange(12), True), (np.arange(12) + 0.5, False)):
        data = xr.Dataset({"loss": ("k", np.linspace(1, 0, 12))}, {"k": along})
        (axes,) = draw(data, Params(variable="loss", along="k", width="one_column")).figure.axes
        axes.set_position((0.1, 0.1, 0.7, 0.8))  # a width at which ticks would be at 0.0, 2.5, 5.0 …
        assert all(float(tick).is_integer() for tick in axes.get_xticks()) is whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variable": "accuracy"}, "the data has no accuracy; it has the dims"),
        ({"along": "depth"}, "the data has no depth; it has the dims n_layers"),
        ({"along": "class"}, "test_accuracy has no dim 'class'; its dims are n_layers, attention_only, seed"),
        ({"variable": "class_name", "along": "class"}, "class_name holds text"),
    ],
)
def test_what_cannot_be_plotted_is_explained(cells: xr.Dataset, changes, message) -> None:
    with pytest.raises(StepError, match=message):
        draw(cells, Params(**{**BY_LAYERS.model_dump(), **changes}))
