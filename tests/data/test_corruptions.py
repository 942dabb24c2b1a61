from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from prisma_steps.data import dsprites
from prisma_steps.data.corruptions import MeanImage, OnPatches, Twin, masked, patch_masks, twins, with_noise
from prisma_steps.step import StepError

IDS = ["a", "b", "c"]
GREY = np.full((3, 2, 8, 12), 128, dtype=np.uint8)


def test_noise_has_the_spread_asked_for() -> None:
    grey = np.full((3, 3, 64, 64), 128, dtype=np.uint8)
    noise = with_noise(grey, 10.0, None, IDS, 0).astype(float) - 128
    assert noise.std() == pytest.approx((100 + 1 / 12) ** 0.5, rel=0.02)  # 36,864 draws, rounded
    assert abs(noise.mean()) < 0.2
    assert not np.array_equal(noise[0], noise[1])


def test_noise_is_cut_and_not_wrapped() -> None:
    black, white = np.zeros((1, 1, 64, 64), np.uint8), np.full((1, 1, 64, 64), 255, np.uint8)
    assert with_noise(black, 20.0, None, ["a"], 0).max() < 128
    assert with_noise(white, 20.0, None, ["a"], 0).min() > 128


def test_noise_depends_on_seed_and_id_alone() -> None:
    whole = with_noise(GREY, 10.0, None, IDS, 0)
    np.testing.assert_array_equal(with_noise(GREY[1:2], 10.0, None, ["b"], 0), whole[1:2])
    assert not np.array_equal(with_noise(GREY[1:2], 10.0, None, ["b"], 1), whole[1:2])


def test_noise_on_patches_alone() -> None:
    where = patch_masks([1], (2, 3), (8, 12), IDS, 0)
    noisy = with_noise(GREY, 30.0, where, IDS, 0)
    assert (noisy[:, :, :4, 4:8] != 128).mean() > 0.9
    noisy[:, :, :4, 4:8] = 128
    assert (noisy == 128).all()


def test_patches_are_numbered_row_by_row() -> None:
    where = patch_masks([2, 3], (2, 3), (8, 12), IDS, 0)
    expected = np.zeros((8, 12), dtype=bool)
    expected[:4, 8:] = expected[4:, :4] = True
    assert all(np.array_equal(mask, expected) for mask in where)


def test_a_share_of_the_patches_is_drawn_for_each_image() -> None:
    many = [str(number) for number in range(200)]
    where = patch_masks(0.5, (2, 3), (8, 12), many, 0)
    assert (where.sum(axis=(1, 2)) == 3 * 16).all()
    share = where.mean(axis=0)  # of 200 images in which a patch is masked, 100 ± 7
    assert share.min() > 0.35 and share.max() < 0.65
    assert patch_masks(0.01, (2, 3), (8, 12), ["a"], 0).sum() == 16
    np.testing.assert_array_equal(patch_masks(0.5, (2, 3), (8, 12), many[7:8], 0)[0], where[7])


def test_masks_are_filled() -> None:
    pixels = np.arange(2 * 8 * 12, dtype=np.uint8).reshape(1, 2, 8, 12)
    where = patch_masks([0], (2, 3), (8, 12), ["a"], 0)
    black = masked(pixels, where, 0)
    assert (black[:, :, :4, :4] == 0).all()
    np.testing.assert_array_equal(black[..., 4:], pixels[..., 4:])
    mean = masked(pixels, where, None)
    assert [set(channel[:4, :4].flat) for channel in mean[0]] == [
        {48},
        {144},
    ]  # means 47.5 and 143.5, to even


def test_a_mask_is_the_same_in_every_frame() -> None:
    clips = np.random.default_rng(0).integers(1, 255, (2, 4, 1, 8, 12), dtype=np.uint8)
    made = OnPatches(np.array(IDS), 0.5, (2, 3), None, 0, 0)(clips, np.array([2, 0]))
    hidden = made.pixels == 0
    assert (hidden == hidden[:, :1]).all()
    assert made.ids.tolist() == ["c + mask", "a + mask"]
    assert hidden.mean() == 0.5


def test_the_mean_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 1, 4, 4), dtype=np.uint8)
    images = xr.Dataset({"pixels": (("image", "channel", "row", "column"), pixels)})
    made = MeanImage(images)(pixels[:2], np.array([0, 1]))
    np.testing.assert_array_equal(made.pixels, np.rint(pixels.mean(0))[None].repeat(2, 0))


@pytest.mark.parametrize("factor", dsprites.FACTORS)
def test_twins_differ_in_one_factor_alone(factor: str) -> None:
    index = np.random.default_rng(0).integers(0, dsprites.COUNT, 200)
    ids = [str(number) for number in index]
    found = twins(index, factor, ids, 0)
    differ = dsprites.latents(index) != dsprites.latents(found)
    assert differ.any(0).tolist() == [name == factor for name in dsprites.FACTORS]
    assert (dsprites.render(index) != dsprites.render(found)).any((1, 2)).all()
    assert len(set(dsprites.latents(found)[:, list(dsprites.FACTORS).index(factor)])) > 2


def sprites(index: np.ndarray) -> xr.Dataset:
    source = dsprites.source()
    coords = {name: ("image", value) for name, value in source.coords(index).items()}
    return xr.Dataset({"pixels": (("image", "channel", "row", "column"), source.pixels(index))}, coords)


def test_a_twin_is_drawn_and_named() -> None:
    images = sprites(np.array([5, 700_000]))
    made = Twin(images, "shape", 0)(images["pixels"].values, np.array([0, 1]))
    number = np.array([int(name.removeprefix("dsprites-")) for name in made.ids])
    np.testing.assert_array_equal(made.pixels, dsprites.source().pixels(number))
    assert made.class_names is not None
    assert made.class_names[0] in ("ellipse", "heart")
    assert dsprites.factors(number)["shape"].tolist() == made.class_names.tolist()


def test_twins_of_other_images_are_refused() -> None:
    images = sprites(np.array([5, 6]))
    with pytest.raises(StepError, match="have no scale, position_x"):
        Twin(images.drop_vars(["scale", "position_x"]), "shape", 0)
    with pytest.raises(StepError, match="not what dSprites draws"):
        Twin(images, "shape", 0)(images["pixels"].values[::-1], np.array([0, 1]))
    with pytest.raises(ValueError, match=r"no scale 0\.55"):
        dsprites.numbered({**dsprites.factors(np.array([5])), "scale": np.array([0.55])})


def test_numbers_follow_from_factors() -> None:
    index = np.random.default_rng(0).integers(0, dsprites.COUNT, 50)
    assert dsprites.numbered(dsprites.factors(index)).tolist() == index.tolist()
