from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from prisma_steps.data.pixels import labels, raw_batch
from prisma_steps.step import StepError


@pytest.fixture
def images() -> xr.Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 2, 3, 4), dtype=np.uint8)
    return xr.Dataset(
        {"pixels": (("image", "channel", "row", "column"), pixels)}, {"label": ("image", [2, 0, 1, 1, 0])}
    )


@pytest.mark.parametrize("where", [slice(1, 3), [4, 0], range(5), np.array([2])])
def test_the_pixels_of_some_images_are_read(images, where):
    batch = raw_batch(images, where)
    assert batch.dtype == torch.uint8
    expected = images["pixels"].values[where if isinstance(where, slice) else list(where)]
    np.testing.assert_array_equal(batch.numpy(), expected)


def test_stored_order_of_dims_does_not_matter(images):
    assert torch.equal(
        raw_batch(images.transpose("column", "image", "row", "channel"), [3]), raw_batch(images, [3])
    )


def test_a_batch_is_a_copy(images):
    before = images["pixels"].values.copy()
    raw_batch(images, slice(None)).zero_()
    np.testing.assert_array_equal(images["pixels"].values, before)


def test_the_raw_batch_is_what_is_stored(images):
    batch = raw_batch(images.transpose("row", ...), [3, 1])
    assert batch.dtype == torch.uint8
    np.testing.assert_array_equal(batch.numpy(), images["pixels"].values[[3, 1]])


def test_clips_keep_their_frames():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 2, 3, 4), dtype=np.uint8)
    clips = xr.Dataset({"pixels": (("image", "frame", "channel", "row", "column"), pixels)})
    for stored in (clips, clips.transpose("channel", "frame", "column", "image", "row")):
        np.testing.assert_array_equal(raw_batch(stored, slice(1, 3)).numpy(), pixels[1:3])
        assert torch.equal(raw_batch(stored, [4]), torch.from_numpy(pixels[[4]]))


def test_labels(images):
    assert labels(images).tolist() == [2, 0, 1, 1, 0]
    with pytest.raises(StepError, match="no classes"):
        labels(images.drop_vars("label"))
