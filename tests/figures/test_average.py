from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from prisma_steps.figures.average import average, frame


def test_mean_and_standard_error() -> None:
    data = xr.Dataset({"l0": (("k", "seed"), [[1.0, 2.0, 3.0, 6.0]])}, {"k": [8], "seed": range(4)})
    found = average(data, "seed")
    assert found["l0"].item() == 3.0
    assert found["l0_standard_error"].item() == pytest.approx(np.sqrt(14 / 3) / 2)


def test_one_seed_has_no_error_and_no_seed_is_no_change() -> None:
    data = xr.Dataset({"l0": ("seed", [2.0])})
    assert list(average(data, "seed")) == ["l0"]
    assert average(data, "pair") is data


def test_a_missing_value_is_not_passed_over() -> None:
    assert np.isnan(average(xr.Dataset({"l0": ("seed", [2.0, np.nan])}), "seed")["l0"])


def test_variables_without_the_dim_get_no_error() -> None:
    data = xr.Dataset({"l0": ("seed", [2.0, 4.0]), "epoch": ("step", [1.0, 2.0])})
    assert set(average(data, "seed")) == {"l0", "l0_standard_error", "epoch"}


def test_frame_is_tidy() -> None:
    data = xr.Dataset(
        {"l0": (("k", "seed"), [[1.0, 2.0], [3.0, 4.0]])}, {"k": [8, 16], "seed": [0, 1], "layer": 3}
    )
    found = frame(data.transpose("k", "seed"))
    assert found.to_dict("list") == {"k": [8, 8, 16, 16], "seed": [0, 1, 0, 1], "l0": [1.0, 2.0, 3.0, 4.0]}
