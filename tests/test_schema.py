from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from prisma_steps import schema

STILL = ("image", "channel", "row", "column")
CLIP = ("image", "frame", "channel", "row", "column")


@pytest.mark.parametrize("dims", [STILL, CLIP])
def test_images_are_stills_or_clips(dims):
    images = xr.Dataset({"pixels": (dims, np.zeros([1] * len(dims), np.uint8))}, {dim: [0] for dim in dims})
    schema.check(schema.label(images), schema.Images)


@pytest.mark.parametrize(
    "dims",
    [
        ("channel", "row", "column"),
        ("image", "channel", "frame", "row", "column"),
        ("image", "row", "column"),
        CLIP[1:],
    ],
)
def test_other_dims_are_no_images(dims):
    images = xr.Dataset({"pixels": (dims, np.zeros([1] * len(dims), np.uint8))})
    with pytest.raises(schema.SchemaError) as caught:
        schema.check(images, schema.Images)
    assert f"pixels has dims {dims}, expected {STILL} or {CLIP}" in str(caught.value)


def test_without_alternative_one_form_is_expected():
    with pytest.raises(schema.SchemaError, match=r"expected \('token_kind',\)"):
        schema.check(xr.Dataset({"l0": ("latent", [1]), "fvu": ("token_kind", [1])}), schema.Quality)
