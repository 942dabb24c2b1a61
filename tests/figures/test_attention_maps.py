from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from prisma_steps.figures.attention_maps import SHADE, Params, attention_maps
from prisma_steps.step import Job, StepError

draw = attention_maps.__wrapped__


def numbers(activations: xr.Dataset, images: xr.Dataset, **params: object) -> xr.Dataset:
    return attention_maps(activations, images, Params(**params), Job()).data


def test_numbers_are_the_row_of_the_query(activations: xr.Dataset, images: xr.Dataset) -> None:
    for query, token in (("cls", 0), ([0, 0], 1), ([1, 2], 6)):
        found = numbers(activations, images, image="b", query=query)
        assert found.sizes["point"] == 2 * 2 * 7
        head = found.isel(point=(found["layer"] == 3) & (found["head"] == 1))
        expected = activations["pattern"].sel(image="b", layer=3, head=1, query_token=token)
        np.testing.assert_array_equal(head["pattern"], expected)
        assert head["token_kind"].values.tolist() == activations["token_kind"].values.tolist()
        assert head["patch_col"].values.tolist() == activations["patch_col"].values.tolist()


def test_image_by_place_or_id(activations: xr.Dataset, images: xr.Dataset) -> None:
    assert numbers(activations, images, image=1).equals(numbers(activations, images, image="b"))
    assert not numbers(activations, images, image=0).equals(numbers(activations, images, image=1))


def test_maps_are_the_patches_shaded_by_the_image(activations: xr.Dataset, images: xr.Dataset) -> None:
    import matplotlib as mpl

    figure = draw(activations, images, Params(image="a")).figure
    shown = figure.axes[0].images[0].get_array()
    pixels = images["pixels"].sel(image="a").values[0]
    np.testing.assert_array_equal(shown, np.repeat(pixels[..., None], 3, axis=-1))
    patches = activations["pattern"].sel(image="a", query_token=0, key_token=slice(1, 6)).values
    colours = mpl.colormaps["Blues"](patches[1, 0].reshape(2, 3) / patches.max())[..., :3]
    upsampled = np.kron(colours, np.ones((4, 4, 1)))
    panel = next(axes for axes in figure.axes if axes.get_title() == "L3 H0")
    expected = upsampled * (1 - SHADE + SHADE * pixels[..., None] / 255)
    np.testing.assert_allclose(panel.images[0].get_array(), expected)
    cls = activations["pattern"].sel(image="a", query_token=0, key_token=0, layer=3, head=0).item()
    assert panel.get_xlabel() == f"CLS {cls:.2f}"


def test_query_is_marked_on_the_image(activations: xr.Dataset, images: xr.Dataset) -> None:
    assert not draw(activations, images, Params()).figure.axes[0].patches
    mark = draw(activations, images, Params(query=[1, 2])).figure.axes[0].patches[0]
    assert (*mark.get_xy(), mark.get_width(), mark.get_height()) == (7.5, 3.5, 4, 4)


def test_one_panel_a_head(activations: xr.Dataset, images: xr.Dataset) -> None:
    titles = [axes.get_title() for axes in draw(activations, images, Params()).figure.axes]
    assert titles == ["Image", "L0 H0", "L0 H1", "L3 H0", "L3 H1", ""]


def test_bad_data(activations: xr.Dataset, images: xr.Dataset) -> None:
    with pytest.raises(StepError, match="has no pattern"):
        draw(activations.drop_vars("pattern"), images, Params())
    with pytest.raises(StepError, match="no image 2 in the data. Give a place from 0 to 1, or an id"):
        draw(activations, images, Params(image=2))
    with pytest.raises(StepError, match="image 'a', which is not in the images"):
        draw(activations, images.sel(image=["c"]), Params())
    with pytest.raises(StepError, match=r"no token is the query \[2, 0\]; .* from \[0, 0\] to \[1, 2\]"):
        draw(activations, images, Params(query=[2, 0]))
    with pytest.raises(StepError, match=r"no token is the query \[-1, -1\]"):
        draw(activations, images, Params(query=[-1, -1]))
    with pytest.raises(StepError, match="place 1 tokens in the image, but the pattern has 7"):
        draw(activations.isel(token=[0]), images, Params())
