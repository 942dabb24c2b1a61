from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from prisma_steps import schema
from prisma_steps.figures.lens_heatmap import Params, lens_heatmap
from prisma_steps.job import Job
from prisma_steps.step import StepError

draw = lens_heatmap.__wrapped__


@pytest.mark.parametrize("measure", ["correct_probability", "ce"])
def test_cells_are_the_means_over_images(lens: xr.Dataset, measure: str) -> None:
    plot = draw(lens.transpose("token", ...), Params(measure=measure))
    (image,) = plot.figure.axes[0].images
    np.testing.assert_allclose(image.get_array(), lens[measure].mean("image"))
    found = lens_heatmap(lens, Params(measure=measure), Job()).data
    assert found.sizes["point"] == 21
    at = found.isel(point=(found["layer"] == 2) & (found["token"] == 4))
    values = lens[measure].sel(layer=2, token=4)
    assert at[measure].item() == pytest.approx(values.mean().item())
    error = at[f"{measure}_standard_error"].item()
    assert error == pytest.approx(values.std(ddof=1).item() / 3**0.5)
    assert at["patch_row"].item() == 1 and at["patch_col"].item() == 0


def test_tokens_that_are_no_patches_are_named(lens: xr.Dataset) -> None:
    panel = draw(lens, Params()).figure.axes[0]
    assert [text.get_text() for text in panel.get_xticklabels()] == ["CLS", "6 patches"]
    kinds = ["cls", "register", "register", *["patch"] * 4]
    renamed = draw(lens.assign_coords(token_kind=("token", kinds)), Params()).figure.axes[0]
    assert [text.get_text() for text in renamed.get_xticklabels()] == ["CLS", "reg.", "4 patches"]
    assert renamed.get_xticks().tolist()[:2] == [0, 1]


def test_a_lens_without_the_correct_class(lens: xr.Dataset) -> None:
    with pytest.raises(StepError, match="lens_heatmap: the data has no correct_probability"):
        draw(lens.drop_vars("correct_probability"), Params())


def test_clips_have_their_frames_named() -> None:
    panel = draw(schema.example(schema.Lens, clips=True), Params()).figure.axes[0]
    assert [text.get_text() for text in panel.get_xticklabels()] == ["CLS", "frame 0", "frame 1"]
    assert panel.get_xticks().tolist() == [0, 3.5, 9.5]
    assert [line.get_xdata()[0] for line in panel.lines] == [0.5, 6.5]
