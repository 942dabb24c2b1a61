from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from prisma_steps.figures.steering_curves import Params, steering_curves
from prisma_steps.job import Job
from prisma_steps.schema import label
from prisma_steps.step import StepError

draw = steering_curves.__wrapped__


@pytest.fixture
def steering() -> xr.Dataset:
    """Probabilities of 3 classes on 6 images, with 5 latents at 4 strengths, which are not in order."""
    random = np.random.default_rng(0)
    cells, clean = ("latent", "strength", "image", "class"), ("image", "class")
    return label(
        xr.Dataset(
            {
                "probability": (cells, random.dirichlet(np.ones(3), size=(5, 4, 6))),
                "clean_probability": (clean, random.dirichlet(np.ones(3), size=6)),
            },
            coords={
                "latent": [7, 2, 30, 4, 11],
                "strength": (
                    "strength",
                    [0.0, -1.0, 2.0, 1.0],
                    {"units": "highest activation of the latent"},
                ),
                "image": [f"image-{number}" for number in range(6)],
                "class_name": ("class", ["square", "ellipse", "heart"]),
            },
            attrs={"mode": "add", "tokens": "patch"},
        )
    )


def test_lines_are_means_over_images_by_rising_strength(steering: xr.Dataset) -> None:
    panels = [axes for axes in draw(steering, Params()).figure.axes if axes.get_title()]
    assert [panel.get_title() for panel in panels] == [f"Latent {n}" for n in (7, 2, 30, 4, 11)]
    mean = steering["probability"].mean("image").sortby("strength")
    clean = steering["clean_probability"].mean("image")
    for panel, latent in zip(panels, steering["latent"].values, strict=True):
        for number in range(3):
            curve, dashed = panel.lines[2 * number : 2 * number + 2]
            assert curve.get_xdata().tolist() == [-1, 0, 1, 2]
            expected = mean.sel(latent=latent).isel({"class": number})
            np.testing.assert_allclose(curve.get_ydata(), expected)
            np.testing.assert_allclose(dashed.get_ydata(), clean[number].item())
            assert curve.get_color() == dashed.get_color()


def test_bands_are_one_standard_error_over_images(steering: xr.Dataset) -> None:
    plot = draw(steering, Params())
    band = plot.figure.axes[0].collections[1].get_paths()[0].vertices
    of_images = steering["probability"].isel(latent=0).sel(strength=2.0).isel({"class": 1})
    mean, error = of_images.mean().item(), of_images.std(ddof=1).item() / 6**0.5
    at_two = band[band[:, 0] == 2.0][:, 1]
    np.testing.assert_allclose([at_two.min(), at_two.max()], [mean - error, mean + error])
    texts = [text.get_text() for text in plot.figure.legends[0].get_texts()]
    assert texts == ["square", "ellipse", "heart", "clean run", "± 1 s.e.,\nn = 6 images"]


def test_chosen_classes_in_their_order(steering: xr.Dataset) -> None:
    plot = draw(steering, Params(classes=["heart", "square"]))
    curves = plot.figure.axes[0].lines[::2]
    expected = steering["probability"].isel(latent=0).mean("image").sortby("strength")
    for curve, number in zip(curves, (2, 0), strict=True):
        np.testing.assert_allclose(curve.get_ydata(), expected.isel({"class": number}))


def test_numbers_and_labels(steering: xr.Dataset) -> None:
    found = steering_curves(steering, Params(), Job()).data
    assert found.sizes["point"] == 5 * 4 * 3
    at = found.isel(
        point=(found["latent"] == 30) & (found["strength"] == 1.0) & (found["class_name"] == "heart")
    )
    expected = steering["probability"].sel(latent=30, strength=1.0).isel({"class": 2})
    assert at["probability"].item() == pytest.approx(expected.mean().item())
    assert at["probability_standard_error"].item() == pytest.approx(expected.std(ddof=1).item() / 6**0.5)
    assert "raised by the strength on patch tokens; mean over 6 images" in found.attrs["caption"]
    drawing = draw(steering, Params(width="two_columns")).figure
    assert drawing.get_supxlabel() == "Strength (highest activation of the latent)"


def test_every_column_of_panels_has_numbers_below(steering: xr.Dataset) -> None:
    drawing = draw(steering, Params(width="two_columns")).figure
    numbered = [bool(axes.xaxis.get_tick_params()["labelbottom"]) for axes in drawing.axes]
    assert numbered == [False, True, True, True, True]  # four in the first row, one in the second


def test_one_image_has_no_band(steering: xr.Dataset) -> None:
    plot = draw(steering.isel(image=[0]), Params())
    assert not plot.figure.axes[0].collections
    assert [text.get_text() for text in plot.figure.legends[0].get_texts()][-1] == "clean run"


def test_bad_data(steering: xr.Dataset) -> None:
    with pytest.raises(StepError, match="no class 'disc'; the data has square, ellipse, heart"):
        draw(steering, Params(classes=["disc"]))
    with pytest.raises(StepError, match="has no probability"):
        draw(steering.drop_vars("probability"), Params())
    many = xr.concat([steering] * 4, "class").assign_coords(class_name=("class", [str(n) for n in range(12)]))
    with pytest.raises(StepError, match="12 classes, and colours tell up to 10 apart"):
        draw(many, Params())
