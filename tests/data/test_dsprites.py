"""dSprites against its published facts and against a drawing made pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from prisma_steps.data import dsprites


@pytest.fixture(scope="module")
def sprites() -> np.ndarray:
    """Every sprite once, in the top left corner: [shape × scale × orientation, row, column]."""
    factors = np.stack(np.meshgrid(range(3), range(6), range(40), [0], [0], indexing="ij"), -1)
    return dsprites.render(dsprites.index(factors.reshape(-1, 5)))


def draw_slowly(number: int) -> np.ndarray:
    shape, scale, turn, x, y = dsprites.latents(np.array([number]))[0]
    image = np.zeros((64, 64), dtype=np.uint8)
    for row in range(64):
        for column in range(64):
            offset = complex(column - x - 15.7, -(row - y - 15.7)) * np.exp(-2j * np.pi * turn / 39)
            u, v = offset.real / (0.5 + 0.1 * scale), offset.imag / (0.5 + 0.1 * scale)
            heart = 21 / np.sqrt(3.6617)
            white = [
                abs(u) <= 10.5 and abs(v) <= 10.5,
                (u / 15.4) ** 2 + (v * 15.4 * np.pi / 441) ** 2 <= 1,
                ((u / heart) ** 2 + (v / heart) ** 2 - 1) ** 3 <= (u / heart) ** 2 * (v / heart) ** 3,
            ][shape]
            image[row, column] = 255 * white
    return image


def test_published_counts_and_values():
    assert dsprites.COUNT == 737_280
    assert [len(values) for values in dsprites.FACTORS.values()] == [3, 6, 40, 32, 32]
    np.testing.assert_allclose(dsprites.FACTORS["scale"], [0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert dsprites.FACTORS["orientation"][[0, -1]].tolist() == [0, 2 * np.pi]


@pytest.mark.parametrize(
    ("number", "factors"),
    [
        (0, [0, 0, 0, 0, 0]),
        (1, [0, 0, 0, 0, 1]),
        (32, [0, 0, 0, 1, 0]),
        (1024, [0, 0, 1, 0, 0]),
        (40 * 1024, [0, 1, 0, 0, 0]),
        (6 * 40 * 1024, [1, 0, 0, 0, 0]),
        (737_279, [2, 5, 39, 31, 31]),
    ],
)
def test_shape_is_slowest_and_position_y_fastest(number, factors):
    assert dsprites.latents(np.array([number]))[0].tolist() == factors


def test_index_inverts_latents_for_every_image():
    every = np.arange(dsprites.COUNT)
    latents = dsprites.latents(every)
    np.testing.assert_array_equal(dsprites.index(latents), every)
    assert len(np.unique(latents, axis=0)) == dsprites.COUNT


@pytest.mark.parametrize("number", [-1, 737_280])
def test_numbers_outside_the_data_set_are_refused(number):
    with pytest.raises(IndexError, match="images 0 to 737279"):
        dsprites.latents(np.array([0, number]))


def test_drawing_is_the_one_made_pixel_by_pixel():
    numbers = np.random.default_rng(0).integers(dsprites.COUNT, size=25)
    for number, image in zip(numbers, dsprites.render(numbers), strict=True):
        np.testing.assert_array_equal(image, draw_slowly(number))


def test_one_connected_white_sprite_on_black(sprites):
    assert set(np.unique(sprites)) == {0, 255}
    assert {ndimage.label(sprite)[1] for sprite in sprites} == {1}
    assert {ndimage.label(sprite == 0)[1] for sprite in sprites} == {1}, "a sprite has a hole"


def test_whole_sprite_is_inside_the_frame_at_every_position(sprites):
    factors = dsprites.latents(np.arange(0, dsprites.COUNT, 1024))
    for x, y in [(0, 0), (0, 31), (31, 0), (31, 31), (13, 7)]:
        factors[:, 3:] = x, y
        moved = dsprites.render(dsprites.index(factors))
        assert not moved[:, [0, -1]].any() and not moved[:, :, [0, -1]].any()
        np.testing.assert_array_equal(moved, np.roll(sprites, (y, x), axis=(1, 2)))


def test_only_the_two_ends_of_the_orientation_draw_the_same(sprites):
    cut = {}
    for number, sprite in enumerate(sprites):
        rows, columns = np.nonzero(sprite)
        outline = sprite[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        cut.setdefault((outline.shape, outline.tobytes()), []).append(number)
    twins = [numbers for numbers in cut.values() if len(numbers) > 1]
    # Outlines are compared wherever they lie, so no two images at any two positions are the same either.
    assert twins == [[first, first + 39] for first in range(0, 720, 40)]


def test_shapes_of_one_scale_have_equal_areas(sprites):
    area = (sprites > 0).sum((1, 2)).reshape(3, 6, 40).mean(-1)
    expected = 441 * dsprites.FACTORS["scale"] ** 2
    # A pixel is in or out: a sprite of 110 pixels is off by a fraction of its 37 pixels of outline.
    np.testing.assert_allclose(area, np.broadcast_to(expected, (3, 6)), rtol=0.01)


def test_orientation_turns_anticlockwise():
    ellipse = dsprites.render(dsprites.index(np.array([[1, 5, 5, 16, 16]])))[0]  # 46°
    rows, columns = np.nonzero(ellipse)
    assert np.corrcoef(-rows, columns)[0, 1] > 0.3


def test_source_names_images_and_factors():
    source = dsprites.source()
    number = dsprites.index(np.array([[2, 1, 39, 31, 0]]))
    coords = {name: values[0] for name, values in source.coords(number).items()}
    assert coords == {
        "image": f"dsprites-{number[0]}",
        "label": 2,
        "shape": "heart",
        "scale": 0.6,
        "orientation": 2 * np.pi,
        "position_x": 1.0,
        "position_y": 0.0,
    }
    np.testing.assert_array_equal(source.pixels(number)[:, 0], dsprites.render(number))
    assert source.class_names[coords["label"]] == coords["shape"]
