from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from prisma_steps import schema
from prisma_steps.data.pairs import check_pairs, classes_in_model, classes_of, prepared_sides, raw_sides
from prisma_steps.step import StepError

DIMS = ("channel", "row", "column")
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 1, 2, 3), dtype=np.uint8)
IMAGES = xr.Dataset(
    {"pixels": (("image", *DIMS), PIXELS)},
    {"image": list("abcd"), "label": ("image", [0, 1, 1, 0]), "class_name": ("class", ["cat", "dog"])},
)
PAIRS = xr.Dataset(
    coords={
        "clean_image": ("pair", ["c", "a", "c"]),
        "corrupted_image": ("pair", ["a", "b", "d"]),
        "clean_class": ("pair", ["dog", "cat", "dog"]),
        "corrupted_class": ("pair", ["cat", "dog", "cat"]),
    }
)
NOISY = PAIRS.assign(corrupted_pixels=(("pair", *DIMS), PIXELS[:3] // 2)).assign_coords(
    corrupted_image=("pair", ["c + noise", "a + noise", "c + noise"])
)


def test_pairs_fit_the_schema() -> None:
    schema.check(PAIRS, schema.Pairs)
    schema.check(NOISY, schema.Pairs)


def test_pixels_of_both_sides() -> None:
    clean, corrupted = raw_sides(IMAGES, PAIRS, slice(1, 3))
    assert np.array_equal(clean, PIXELS[[0, 2]])
    assert np.array_equal(corrupted, PIXELS[[1, 3]])
    clean, corrupted = raw_sides(IMAGES, NOISY, slice(1, 3))
    assert np.array_equal(clean, PIXELS[[0, 2]])
    assert np.array_equal(corrupted, PIXELS[1:3] // 2)


def test_both_sides_are_prepared() -> None:
    raw, prepared = (
        raw_sides(IMAGES, NOISY, slice(0, 2)),
        prepared_sides(IMAGES, NOISY, slice(0, 2), lambda raw: raw / 255),
    )
    for before, after in zip(raw, prepared, strict=True):
        assert torch.equal(after, before / 255)


def test_classes_are_those_of_the_model() -> None:
    assert classes_of(PAIRS, ["bird", "dog", "cat"]).tolist() == [[1, 2], [2, 1], [1, 2]]
    assert classes_in_model(IMAGES, ["bird", "dog", "cat"]).tolist() == [2, 1, 1, 2]


def test_classes_that_the_model_lacks() -> None:
    with pytest.raises(StepError, match="the class 'dog' is none of the model's, which are cat, bird"):
        classes_of(PAIRS, ["cat", "bird"])
    with pytest.raises(StepError, match="the model has no named classes"):
        classes_in_model(IMAGES, None)
    with pytest.raises(StepError, match="the images have no classes"):
        classes_in_model(IMAGES.drop_vars("class_name"), ["cat", "dog"])


def test_pairs_of_other_images_or_of_one_image() -> None:
    check_pairs(IMAGES, PAIRS)
    check_pairs(IMAGES, NOISY)
    with pytest.raises(StepError, match="the corrupted image d, which is not among the 3 images"):
        check_pairs(IMAGES.isel(image=slice(3)), PAIRS)
    with pytest.raises(StepError, match="the clean image c, which is not among"):
        check_pairs(IMAGES.isel(image=slice(2)), NOISY)
    itself = PAIRS.assign_coords(corrupted_image=("pair", ["a", "a", "d"]))
    with pytest.raises(StepError, match="pair 1 is of the image a with itself"):
        check_pairs(IMAGES, itself)
