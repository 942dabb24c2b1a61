"""Moving sprites against positions found in their pixels."""

from __future__ import annotations

import numpy as np
import pytest

from prisma_steps.data import dsprites
from prisma_steps.data.moving_sprites import COUNT, DIRECTIONS, Clips, source


def places(frames: np.ndarray) -> np.ndarray:
    """Where the white pixels of frames begin: [..., (x, y)], found without knowing what was drawn."""
    white = frames > 0
    return np.stack([white.any(-2).argmax(-1), white.any(-1).argmax(-1)], axis=-1)


def number(direction: int, start: np.ndarray, speed: int, n_speeds: int) -> np.ndarray:
    return (direction * dsprites.COUNT + np.asarray(start)) * n_speeds + speed


def test_there_is_every_direction_start_and_speed_once():
    clips = Clips(2, (1, 3), moving=True)
    assert COUNT == 4 * 737_280 and source(2, [1, 3]).count == 2 * COUNT
    some = np.concatenate([np.arange(5), np.arange(2 * COUNT - 5, 2 * COUNT)])
    coords = clips.coords(some)
    assert coords["image"][[0, 1, 2, -1]].tolist() == [
        "moving_sprites-right-1-000000",
        "moving_sprites-right-3-000000",
        "moving_sprites-right-1-000001",
        "moving_sprites-up-3-737279",
    ]
    assert coords["label"].tolist() == [0] * 5 + [3] * 5


@pytest.mark.parametrize("speed", [1, 5, 15])
def test_positions_are_start_plus_time_times_velocity_round_the_torus(speed):
    numbers = np.random.default_rng(0).integers(COUNT, size=60)
    clips = source(9, [speed])
    coords, frames = clips.coords(numbers), clips.pixels(numbers)[:, :, 0]
    start = np.stack([coords["position_x"], coords["position_y"]], -1) * 31
    velocity = np.stack([coords["velocity_x"], coords["velocity_y"]], -1)
    expected = (np.rint(start)[:, None] + np.arange(9)[:, None] * velocity[:, None]) % 32
    # The same sprite drawn at (0, 0) tells where in its box it begins.
    latents = dsprites.latents(numbers % dsprites.COUNT)
    latents[:, 3:] = 0
    offset = places(dsprites.render(dsprites.index(latents)))[:, None]
    np.testing.assert_array_equal(places(frames) - offset, expected)


@pytest.mark.parametrize(
    ("direction", "velocity"), [("right", (2, 0)), ("left", (-2, 0)), ("down", (0, 2)), ("up", (0, -2))]
)
def test_directions_are_what_their_names_say(direction, velocity):
    middle = dsprites.index(np.array([[0, 3, 7, 16, 16]]))
    clips = source(3, [2])
    at = number(list(DIRECTIONS).index(direction), middle, 0, 1)
    found = places(clips.pixels(at)[0, :, 0])
    np.testing.assert_array_equal(np.diff(found, axis=0), [velocity, velocity])
    coords = clips.coords(at)
    assert (coords["velocity_x"][0], coords["velocity_y"][0]) == velocity
    assert clips.class_names[coords["label"][0]] == direction


def test_a_sprite_keeps_its_shape():
    numbers = np.random.default_rng(1).integers(COUNT, size=40)
    frames = source(8, [7]).pixels(numbers)[:, :, 0]
    for clip in frames:
        corners = places(clip)
        cut = [
            np.roll(frame, tuple(-corner[::-1]), (0, 1)) for frame, corner in zip(clip, corners, strict=True)
        ]
        assert all(np.array_equal(each, cut[0]) for each in cut)


def test_of_all_clips_each_frame_by_itself_has_one_distribution_in_every_class():
    """Exact, over the whole enumeration: in every class, every frame shows every image exactly once."""
    clips = Clips(3, (5,), moving=True)
    for direction in range(4):
        shown = clips.frames(number(direction, np.arange(dsprites.COUNT), 0, 1))
        for frame in shown.T:
            assert (np.bincount(frame, minlength=dsprites.COUNT) == 1).all()


def test_so_do_the_positions_found_in_the_pixels():
    every_place = np.arange(7 * 1024, 8 * 1024)  # of one sprite
    counts = []
    for direction in range(4):
        frames = source(4, [3]).pixels(number(direction, every_place, 0, 1))[:, :, 0]
        x, y = np.moveaxis(places(frames), -1, 0)
        counts.append([np.bincount(64 * x[:, t] + y[:, t], minlength=4096) for t in range(4)])
    assert (np.array(counts) == counts[0][0]).all()
    assert sorted(set(counts[0][0])) == [0, 1] and counts[0][0].sum() == 1024


def test_sets_of_frames_do_not_tell_right_from_left_or_down_from_up():
    every_place = np.arange(1024)
    sets = [
        {frozenset(clip) for clip in Clips(4, (3,), True).frames(number(at, every_place, 0, 1)).tolist()}
        for at in range(4)
    ]
    assert sets[0] == sets[1] and sets[2] == sets[3]


def test_the_control_stands_still_where_the_clip_begins_and_keeps_ids_and_labels():
    numbers = np.random.default_rng(2).integers(2 * COUNT, size=50)
    moving, static = source(6, [1, 4]), source(6, [1, 4], moving=False)
    frames = static.pixels(numbers)
    assert (frames == frames[:, :1]).all()
    np.testing.assert_array_equal(frames[:, 0], moving.pixels(numbers)[:, 0])
    one, other = moving.coords(numbers), static.coords(numbers)
    assert not other["velocity_x"].any() and not other["velocity_y"].any()
    for name in one.keys() - {"velocity_x", "velocity_y"}:
        np.testing.assert_array_equal(one[name], other[name])


def test_an_id_is_one_clip_whatever_the_other_speeds_are():
    start = np.array([5, 700_000])
    one, other = source(4, [2]), source(4, [1, 2, 3])
    first, second = number(2, start, 0, 1), number(2, start, 1, 3)
    assert one.coords(first)["image"].tolist() == other.coords(second)["image"].tolist()
    np.testing.assert_array_equal(one.pixels(first), other.pixels(second))


@pytest.mark.parametrize("outside", [-1, COUNT])
def test_numbers_outside_the_data_set_are_refused(outside):
    with pytest.raises(ValueError, match="index"):
        source(2, [1]).pixels(np.array([outside]))
