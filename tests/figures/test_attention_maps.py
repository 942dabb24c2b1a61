from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from matplotlib.patches import Patch, Rectangle

from prisma_steps import schema
from prisma_steps.figures.attention_maps import Params, attention_maps
from prisma_steps.figures.token_maps import SHADE, shaded
from prisma_steps.job import Job
from prisma_steps.step import StepError

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


def place(mark: Patch) -> tuple[float, ...]:
    assert isinstance(mark, Rectangle)
    return *mark.get_xy(), mark.get_width(), mark.get_height()


def test_query_is_marked_on_the_image_and_on_every_map(activations: xr.Dataset, images: xr.Dataset) -> None:
    assert not any(panel.patches for panel in draw(activations, images, Params()).figure.axes[:-1])
    *panels, _ = draw(activations, images, Params(query=[1, 2])).figure.axes
    assert {place(mark) for panel in panels for mark in panel.patches} == {(7.5, 3.5, 4, 4)}
    assert all(len(panel.patches) == 1 for panel in panels)


def test_one_panel_a_head(activations: xr.Dataset, images: xr.Dataset) -> None:
    titles = [axes.get_title() for axes in draw(activations, images, Params()).figure.axes]
    assert titles == ["Image", "L0 H0", "L0 H1", "L3 H0", "L3 H1", ""]


def test_several_images_layers_and_heads(activations: xr.Dataset, images: xr.Dataset) -> None:
    asked = Params(image=["b", 0], layers=[3], heads=[1])
    figure = draw(activations, images, asked).figure
    assert [axes.get_title() for axes in figure.axes] == ["Image", "L3 H1", "Image", "L3 H1", ""]
    for panel, name in zip(figure.axes[::2], "ba", strict=False):
        pixels = images["pixels"].sel(image=name).values[0]
        np.testing.assert_array_equal(panel.images[0].get_array()[..., 0], pixels)
    found = numbers(activations, images, image=["b", 0], layers=[3], heads=[1])
    expected = activations["pattern"].sel(image=["b", "a"], layer=3, head=1, query_token=0)
    np.testing.assert_array_equal(found["pattern"], expected.values.ravel())
    assert found["image"].values.tolist() == ["b"] * 7 + ["a"] * 7


def test_clips_have_a_row_of_frames_for_every_head() -> None:
    activations, clips = (schema.example(kind, clips=True) for kind in (schema.Activations, schema.Images))
    plot = draw(activations, clips, Params(image="c", query=[1, 0, 2], layers=[1]))
    *panels, bar = plot.figure.axes
    tops = sorted({round(panel.get_position().y1, 6) for panel in panels}, reverse=True)
    rows = [[panel for panel in panels if round(panel.get_position().y1, 6) == top] for top in tops]
    assert [len(row) for row in rows] == [2, 2, 2] and bar.get_xlabel().startswith("Attention to the patch")
    assert [panel.get_title() for panel in rows[0]] == ["Frame 0", "Frame 1"]
    pixels = clips["pixels"].sel(image="c").values[:, 0]  # two frames of the clip to a frame of patches
    for panel, frame in zip(rows[0], (0, 2), strict=True):
        np.testing.assert_array_equal(panel.images[0].get_array()[..., 0], pixels[frame])
    # The query is patch 2 of frame 1: token 1 + 6 + 2. It is marked in its frame alone.
    pattern = activations["pattern"].sel(image="c", layer=1, query_token=9)
    assert [[len(panel.patches) for panel in row] for row in rows] == [[0, 1]] * 3
    for head, row in enumerate(rows[1:]):
        aside = f"CLS {float(pattern.sel(head=head, key_token=0)):.2f}"
        assert row[0].get_ylabel() == f"L1 H{head}\n{aside}"
        for frame, panel in enumerate(row):
            patches = pattern.sel(head=head)[1 + 6 * frame : 7 + 6 * frame].values.reshape(2, 3)
            colours = mpl.colormaps["Blues"](patches / float(pattern[:, 1:].max()))[..., :3]
            np.testing.assert_allclose(panel.images[0].get_array(), shaded(colours, still(pixels[2 * frame])))


def still(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, -1)


def test_a_black_background_leaves_the_colours_as_they_are() -> None:
    colours = np.array([[[0.2, 0.4, 1.0], [1.0, 0.8, 0.6]]])
    sprite = np.zeros((2, 4, 3), "uint8")
    sprite[0, 1] = 255
    found = shaded(colours, sprite)
    np.testing.assert_allclose(found[0, 1], colours[0, 0] * (1 - SHADE))
    sprite[0, 1] = 0
    np.testing.assert_allclose(shaded(colours, sprite), found[1:].repeat(2, 0))


def test_more_maps_than_fit_on_a_page(activations: xr.Dataset, images: xr.Dataset) -> None:
    deep = xr.concat([activations] * 20, "layer").assign_coords(layer=range(40))
    assert draw(deep, images, Params(layers=[*range(12)])).figure.get_figheight() < 9.5
    with pytest.raises(StepError, match="40 rows of 3 maps do not fit on a page. Choose some: layers, heads"):
        draw(deep, images, Params())


def test_a_query_of_a_clip_needs_its_frame() -> None:
    activations, clips = (schema.example(kind, clips=True) for kind in (schema.Activations, schema.Images))
    with pytest.raises(StepError, match=r"from \[0, 0, 0\] to \[1, 1, 2\] \(frame, row, col\)"):
        draw(activations, clips, Params(query=[0, 0]))


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
    with pytest.raises(StepError, match="no head 5; the data has 0, 1"):
        draw(activations, images, Params(heads=[0, 5]))
    with pytest.raises(StepError, match="places 1 tokens in the image, but the pattern has 7"):
        draw(activations.isel(token=[0]), images, Params())
