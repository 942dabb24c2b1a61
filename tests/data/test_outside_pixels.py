"""Pixels that stay in files against the same pixels in memory."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from prisma_steps import schema
from prisma_steps.data import outside_pixels
from prisma_steps.data.files import pixel_hash
from prisma_steps.data.image_folder import ImageFile
from prisma_steps.data.pixels import raw_batch
from prisma_steps.step import StepError
from tests.artifacts import scaled

COUNT, SIZE = 12, 5


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Names of the files read from now on."""
    names, real = [], ImageFile.read
    monkeypatch.setattr(ImageFile, "read", lambda reader, path: names.append(path.name) or real(reader, path))
    return names


@pytest.fixture
def both(tmp_path) -> tuple[xr.Dataset, xr.Dataset]:
    """The images in memory, and from their files."""
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 3, SIZE, SIZE), dtype=np.uint8)
    names = [f"{number:02d}.png" for number in range(COUNT)]
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / name)
    coords = {"image": names, "channel": range(3), "row": range(SIZE), "column": range(SIZE)}
    stored = xr.Dataset({"pixels": (("image", "channel", "row", "column"), pixels)}, coords)
    hashes = np.array([pixel_hash(image) for image in pixels], dtype=np.uint64)
    kept = xr.Dataset({"pixel_hash": ("image", hashes)}, coords)
    kept.attrs[outside_pixels.READ_AS] = outside_pixels.read_as(ImageFile(SIZE))
    return schema.label(stored), outside_pixels.attach(kept, tmp_path, threads=2)


CHOICES = [
    {"image": slice(3, 9, 2)},
    {"image": slice(None, None, -1)},
    {"image": [7, 0, 7]},
    {"image": 4},
    {"image": -1, "channel": 1},
    {"image": np.array([2, 5]), "row": [4, 0], "column": slice(1, 3)},
    {"image": [1, 2], "channel": 0, "column": -1},
    {"row": 2},
    {"image": xr.DataArray([1, 3], dims="pair"), "channel": xr.DataArray([0, 2], dims="pair")},
    {"image": slice(0, 0)},
]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_indexing_gives_what_stored_pixels_give(both, choice):
    stored, lazy = both
    xr.testing.assert_identical(lazy["pixels"].isel(choice).load(), stored["pixels"].isel(choice))


def test_only_the_images_asked_for_are_read(both, read):
    _, lazy = both
    few = lazy.isel(image=[8, 3, 5])
    few = few.isel(image=slice(1, None))
    assert few["pixels"].shape == (2, 3, SIZE, SIZE) and not read
    few["pixels"].isel(row=0).load()
    assert sorted(read) == ["03.png", "05.png"]


@pytest.mark.parametrize("where", [slice(2, 5), [9, 0], np.array([1])])
def test_batches_are_those_of_stored_pixels(both, where, read):
    stored, lazy = both
    assert (raw_batch(lazy, where) == raw_batch(stored, where)).all()
    assert len(read) == len(np.arange(COUNT)[where])
    assert (scaled(lazy.transpose("row", ...), where) == scaled(stored, where)).all()


def test_selection_by_id_and_other_orders_of_dims_work(both):
    stored, lazy = both
    for data in (stored, lazy):
        assert data["pixels"].sel(image="07.png").transpose("row", "column", "channel").shape == (
            SIZE,
            SIZE,
            3,
        )
    xr.testing.assert_equal(*(data["pixels"].sel(image="07.png").transpose().load() for data in both))


def test_as_dask_arrays_images_are_read_by_the_task_that_needs_them(both, read):
    stored, lazy = both
    chunked = lazy["pixels"].chunk({"image": 4})
    assert not read
    np.testing.assert_array_equal(chunked[4:8].compute(), stored["pixels"][4:8])
    assert sorted(read) == ["04.png", "05.png", "06.png", "07.png"]


def test_it_can_be_sent_to_another_process(both):
    stored, lazy = both
    xr.testing.assert_identical(pickle.loads(pickle.dumps(lazy))["pixels"].load(), stored["pixels"])


def test_what_is_stored_holds_no_pixel(both):
    _, lazy = both
    kept = outside_pixels.detach(lazy)
    assert set(kept.data_vars) == {"pixel_hash"} and outside_pixels.are_outside(kept)
    assert not outside_pixels.are_outside(both[0]) and outside_pixels.detach(both[0]) is both[0]


@pytest.mark.parametrize("what", ["changed", "gone", "no image"])
def test_a_file_that_is_not_what_was_loaded_is_not_served(both, tmp_path, what):
    _, lazy = both
    file = tmp_path / "06.png"
    if what == "changed":
        Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(file)
    elif what == "gone":
        file.unlink()
    else:
        file.write_text("text")
    lazy["pixels"].isel(image=slice(0, 6)).load()
    with pytest.raises(
        StepError, match=r"^image_folder: 06\.png: .+put it back.+run the experiment again"
    ) as told:
        lazy["pixels"].isel(image=slice(4, 8)).load()
    assert str(tmp_path) not in str(told.value)
