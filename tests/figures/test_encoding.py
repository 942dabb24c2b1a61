from __future__ import annotations

import pytest
import xarray as xr

from prisma_steps.figures.average import frame
from prisma_steps.figures.encoding import Encoding, GridParams, encode, names
from prisma_steps.step import StepError


def roles(encoding: Encoding) -> list[str | None]:
    return [channel and channel.axis for channel in (encoding.hue, encoding.style, encoding.columns)]


def of(data: xr.Dataset, inner: tuple[str, ...] = (), **params: str) -> Encoding:
    return encode(data[["fvu"]], GridParams(**params), (*inner, "token_kind"), of="pareto")


def test_axes_take_channels_in_order(quality: xr.Dataset) -> None:
    assert roles(of(quality, ("seed", "sparsity"))) == ["architecture", "layer", None]
    assert roles(of(quality, ("seed",))) == ["architecture", "layer", "sparsity"]


def test_named_channels_come_first(quality: xr.Dataset) -> None:
    assert roles(of(quality, ("seed",), hue="layer")) == ["layer", "architecture", "sparsity"]
    assert roles(of(quality, ("seed", "sparsity"), columns="architecture")) == ["layer", None, "architecture"]


def test_axes_of_one_point_need_no_channel(quality: xr.Dataset) -> None:
    assert roles(of(quality.isel(layer=[1], seed=[0]))) == ["architecture", "sparsity", None]


def test_more_axes_than_channels(quality: xr.Dataset) -> None:
    with pytest.raises(StepError, match=r"at most three .* Select a point of 'seed': .*select: \{seed: …\}"):
        of(quality)


def test_axis_that_is_not_there(quality: xr.Dataset) -> None:
    with pytest.raises(
        StepError, match="style is 'width', but the grid axes are architecture, layer, sparsity"
    ):
        of(quality, ("seed",), style="width")


def test_more_values_than_line_styles() -> None:
    data = xr.Dataset({"fvu": (("width", "depth"), [[0.0] * 7] * 2)}, {"width": [1, 2], "depth": range(7)})
    with pytest.raises(StepError, match="style can tell 6 values apart, 'depth' has 7"):
        of(data)
    assert roles(of(data, hue="depth")) == ["depth", "width", None]


def test_every_point_is_on_one_line(quality: xr.Dataset) -> None:
    data = quality[["fvu"]].sel(token_kind="all", drop=True)
    encoding = encode(
        data, GridParams(hue="architecture", columns="layer", style="seed"), ("sparsity",), "pareto"
    )
    lines = list(encoding.lines(frame(data)))
    assert [line.panel for line in lines] == [0] * 4 + [1] * 4 + [2] * 4
    drawn = [
        (tuple(row) for row in line.points[["architecture", "layer", "seed"]].to_numpy()) for line in lines
    ]
    assert [len(line.points) for line in lines] == [4] * 12
    assert len({next(iter(points)) for points in drawn}) == 12
    looks = {(line.look["color"], str(line.look["linestyle"]), line.look["marker"]) for line in lines}
    assert len(looks) == 4


def test_colours_differ_and_numbers_run_from_dark_to_light(quality: xr.Dataset) -> None:
    numbers = of(quality, ("seed", "sparsity", "architecture"), hue="layer").hue.looks
    light = [0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue, _ in numbers]
    assert light == sorted(light)
    words = of(quality, ("seed", "sparsity", "layer")).hue.looks
    assert len(set(words)) == 2


def test_zipped_axis_goes_by_its_parameters(quality: xr.Dataset) -> None:
    followed = quality.assign_coords(sparsity_setting=("sparsity", ["a", "b", "c", "d"]))
    title, texts = names(followed, "sparsity")
    assert title == "l1 coefficient, k"
    assert texts == ("0.0001, 64", "0.0003, 32", "0.001, 16", "0.003, 8")


def test_own_values_of_an_axis_come_before_other_coordinates() -> None:
    data = xr.Dataset(coords={"n_layers": [1, 4], "layer": ("n_layers", [0, 3])})
    assert names(data, "n_layers") == ("n layers", ("1", "4"))
    assert names(xr.Dataset(coords={"causal": [False, True]}), "causal") == ("causal", ("false", "true"))


def test_panels_are_titled(quality: xr.Dataset) -> None:
    assert of(quality, ("seed", "sparsity"), columns="layer").panels == ("layer: 0", "layer: 1", "layer: 2")
    assert of(quality.isel(architecture=0), ("seed", "sparsity", "layer")).panels == ("",)
