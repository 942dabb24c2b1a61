from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from prisma_steps.figures.lens_maps import N_COLOURS, OTHERS, Params, lens_maps
from prisma_steps.figures.token_maps import shaded
from prisma_steps.job import Job
from prisma_steps.step import StepError

draw = lens_maps.__wrapped__


def legend(plot) -> dict[str, tuple[float, ...]]:
    """Colour of every name."""
    (found,) = plot.figure.legends
    return {
        text.get_text(): patch.get_facecolor()[:3]
        for text, patch in zip(found.get_texts(), found.get_patches(), strict=True)
    }


def test_every_patch_has_the_colour_of_its_class(lens: xr.Dataset, images: xr.Dataset) -> None:
    plot = draw(lens, images, Params(image="b"))
    panels, colours = plot.figure.axes, legend(plot)
    assert [panel.get_title() for panel in panels] == [
        *("Image", "Embedding", "After 1 block", "After 2 blocks")
    ]
    names = lens["class_name"].values
    for layer, panel in enumerate(panels[1:]):
        classes = lens["top_class"].sel(image="b", layer=layer).isel(place=0).values
        expected = [[colours[names[classes[1 + 3 * row + col]]] for col in range(3)] for row in range(2)]
        np.testing.assert_allclose(
            panel.images[0].get_array(), shaded(np.array(expected), panels[0].images[0].get_array())
        )
        assert panel.get_xlabel() == f"CLS: {names[classes[0]]}"
    pixels = images["pixels"].sel(image="b").values[0]
    np.testing.assert_array_equal(panels[0].images[0].get_array()[..., 2], pixels)


def test_numbers_are_the_classes_of_the_image(lens: xr.Dataset, images: xr.Dataset) -> None:
    found = lens_maps(lens, images, Params(image=2), Job()).data
    assert found.sizes["point"] == 21
    at = found.isel(point=(found["layer"] == 1) & (found["token"] == 5))
    assert at["top_class"].item() == lens["top_class"].sel(image="c", layer=1, token=5, place=0).item()


def test_only_the_most_frequent_classes_have_a_colour(lens: xr.Dataset, images: xr.Dataset) -> None:
    many = lens.drop_vars("class_name").copy()
    many["top_class"] = lens["top_class"].copy(data=np.arange(3 * 3 * 7 * 2).reshape(3, 3, 7, 2) % 40)
    colours = legend(draw(many, images, Params()))
    assert len(colours) == N_COLOURS + 1 and colours["other classes"] == OTHERS
    assert sum(name.startswith("class ") for name in colours) == N_COLOURS


def test_a_frame_of_a_clip(lens: xr.Dataset, images: xr.Dataset) -> None:
    frames = [-1, 0, 0, 0, 1, 1, 1]
    clip = lens.assign_coords(patch_frame=("token", frames), patch_row=("token", [-1, 0, 0, 0, 0, 0, 0]))
    films = images.expand_dims(frame=4).copy(deep=True)
    films["pixels"] = films["pixels"].transpose("image", "frame", ...).copy()
    films["pixels"][:, 2] = 77
    plot = draw(clip, films, Params(frame=1))
    classes = lens["top_class"].sel(image="a", layer=0).isel(place=0).values[4:]
    colours, names = legend(plot), lens["class_name"].values
    shown = plot.figure.axes[1].images[0].get_array()
    expected = np.array([[colours[names[number]] for number in classes]])
    np.testing.assert_allclose(shown, shaded(expected, plot.figure.axes[0].images[0].get_array()))
    assert (plot.figure.axes[0].images[0].get_array() == 77).all()
    with pytest.raises(StepError, match="no frame 2: the patch grid has frames 0 to 1"):
        draw(clip, films, Params(frame=2))


def test_bad_data(lens: xr.Dataset, images: xr.Dataset) -> None:
    with pytest.raises(StepError, match="lens_maps: no image 'x' in the data. Give a place from 0 to 2"):
        draw(lens, images, Params(image="x"))
    with pytest.raises(StepError, match="the data is of image 'a', which is not in the images"):
        draw(lens, images.drop_sel(image="a"), Params())
    with pytest.raises(StepError, match="has no patch_row"):
        draw(lens.drop_vars("patch_row"), images, Params())
