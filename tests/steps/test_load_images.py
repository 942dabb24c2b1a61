from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from pydantic import ValidationError

from prisma_steps import schema
from prisma_steps.data import digits, dsprites, moving_sprites
from prisma_steps.fingerprint import parameters_in_key
from prisma_steps.job import Job
from prisma_steps.step import StepError
from prisma_steps.steps import load_images as module
from prisma_steps.steps.load_images import Params, load_images


def load(**params):
    return load_images(Params(**params), Job()).load()


@pytest.fixture
def folder(tmp_path) -> str:
    for number in range(6):
        path = tmp_path / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((10, 12), number, dtype=np.uint8)).save(path)
    return str(tmp_path)


@pytest.fixture
def clips(tmp_path) -> str:
    """Six clips of five frames in two classes."""
    for number in range(6):
        frames = tmp_path / "clips" / f"class{number % 2}" / str(number)
        frames.mkdir(parents=True)
        for frame in range(5):
            image = np.full((10, 12), 10 * number + frame, dtype=np.uint8)
            Image.fromarray(image).save(frames / f"{frame}.png")
    return str(tmp_path / "clips")


OF_DATA_SET = {
    "dsprites": {},
    "digits": {},
    "image_folder": {"path": "folder"},
    "image_folder, lazy": {"path": "folder", "pixels": "lazy"},
    "moving_sprites": {"n_frames": 3},
    "video_folder": {"path": "clips", "n_frames": 3, "size": 6},
    "video_folder, lazy": {"path": "clips", "n_frames": 3, "size": 6, "pixels": "lazy"},
}


@pytest.mark.parametrize("dataset", OF_DATA_SET)
def test_every_data_set_gives_images(dataset, request):
    params = dict(OF_DATA_SET[dataset])
    if "path" in params:
        params["path"] = request.getfixturevalue(params["path"])
    images = load(dataset=dataset.partition(",")[0], n_images=5, **params)
    schema.check(images, schema.Images)
    assert images.sizes["image"] == 5 and images["pixels"].dtype == np.uint8
    assert images.sizes.get("frame", 3) == 3 and ("frame" in images.dims) == ("n_frames" in params)
    assert all({"long_name", "units"} <= set(images[name].attrs) for name in images.variables)
    assert images["pixels"].attrs == {"long_name": "intensity", "units": "1/255"}
    assert images["class_name"].dims == ("class",)


def test_counts_are_those_of_the_data_sets():
    assert {
        "dsprites": dsprites.COUNT,
        "digits": digits.source().count,
        "moving_sprites": moving_sprites.COUNT,
    } == module.COUNTS


def test_pixels_labels_and_factors_belong_to_the_id():
    images = load(dataset="dsprites", n_images=20, seed=3)
    numbers = np.array([int(name.removeprefix("dsprites-")) for name in images["image"].values])
    np.testing.assert_array_equal(images["pixels"][:, 0], dsprites.render(numbers))
    np.testing.assert_array_equal(images["class_name"].values[images["label"]], images["shape"])
    np.testing.assert_allclose(images["scale"], 0.5 + 0.1 * dsprites.latents(numbers)[:, 1])


def test_samples_that_skip_each_other_share_no_image_and_make_up_the_whole():
    parts = [load(dataset="digits", n_images=1000), load(dataset="digits", skip=1000)]
    names = np.concatenate([part["image"].values for part in parts])
    assert [part.sizes["image"] for part in parts] == [1000, 797]
    assert len(set(names)) == 1797
    np.testing.assert_array_equal(names, load(dataset="digits")["image"])


def test_seed_decides_the_sample():
    first, again, other = (load(dataset="digits", n_images=50, seed=seed) for seed in (0, 0, 1))
    assert first.identical(again)
    assert not np.array_equal(first["image"], other["image"])


def test_a_sample_has_every_class_from_its_first_images_on():
    assert set(load(dataset="dsprites", n_images=40)["label"].values[:20]) == {0, 1, 2}


@pytest.mark.parametrize("per_block", [1, 7, 100])
def test_blocks_put_together_are_the_whole(monkeypatch, per_block):
    whole = load(dataset="digits", n_images=30)
    monkeypatch.setattr(module, "BLOCK_BYTES", 64 * per_block)
    blocks = load_images(Params(dataset="digits", n_images=30), Job())
    assert blocks.size == per_block
    assert blocks.load().identical(whole)


def test_all_of_dsprites_is_drawn_block_by_block():
    blocks = load_images(Params(dataset="dsprites"), Job())
    assert blocks.template.sizes["image"] == 737_280
    assert blocks.size * 64 * 64 <= module.BLOCK_BYTES
    assert blocks.make(slice(737_270, 737_280))["pixels"].shape == (10, 1, 64, 64)


def test_images_of_a_folder_are_of_the_size_asked_for(folder):
    images = load(dataset="image_folder", path=folder, size=5)
    assert images["pixels"].shape == (6, 3, 5, 5)
    values = dict(zip(images["image"].values, images["pixels"].values[:, 0, 0, 0], strict=True))
    assert values == {f"class{number % 2}/{number}.png": number for number in range(6)}
    assert images["class_name"].values.tolist() == ["class0", "class1"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"dataset": "image_folder"}, "needs `path`"),
        ({"dataset": "video_folder"}, "dataset: video_folder needs `path`"),
        (
            {"dataset": "digits", "path": "x"},
            "`path` is for dataset: image_folder or video_folder, not for digits",
        ),
        (
            {"dataset": "digits", "n_images": 1798},
            "digits has 1,797 images; skip 0 and n_images 1,798 ask for more",
        ),
        ({"dataset": "digits", "skip": 1797}, "skip 1,797 and n_images all ask for more"),
        ({"dataset": "dsprites", "n_images": 1, "skip": 737_280}, "dsprites has 737,280 images"),
        ({"dataset": "dsprites", "n_images": 0}, "greater than 0"),
        (
            {"dataset": "mnist"},
            "'dsprites', 'digits', 'image_folder', 'moving_sprites' or 'video_folder'",
        ),
        ({"dataset": "moving_sprites", "n_frames": 1}, "n_frames of at least 2: one frame shows no motion"),
        ({"dataset": "moving_sprites", "speeds": []}, "at least 1 item"),
        ({"dataset": "moving_sprites", "speeds": [3, 3]}, "each speed may be named once"),
        (
            {"dataset": "moving_sprites", "speeds": [16]},
            "a speed is 1 to 15.+at 16 right and left are the same",
        ),
        ({"dataset": "moving_sprites", "speeds": [0, 1]}, "a speed is 1 to 15"),
        ({"dataset": "moving_sprites", "motion": "still"}, "'moving' or 'static'"),
        ({"dataset": "moving_sprites", "skip": 2_949_120}, "moving_sprites has 2,949,120 images"),
        (
            {"dataset": "moving_sprites", "speeds": [1, 2], "skip": 2 * 2_949_120},
            "moving_sprites has 5,898,240 images",
        ),
        ({"dataset": "video_folder", "path": "x", "frame_stride": 0}, "greater than 0"),
        ({"dataset": "image_folder", "path": "x", "pixels": "linked"}, "'stored' or 'lazy'"),
        ({"dataset": "image_folder", "path": "x", "on_broken": "ignore"}, "'error' or 'skip'"),
    ],
)
def test_parameters_that_cannot_be_met_are_refused(params, message):
    with pytest.raises(ValidationError, match=message):
        Params(**params)


def test_a_folder_with_fewer_images_than_asked_for_is_refused(folder):
    with pytest.raises(StepError, match="load_images: image_folder has 6 images; skip 2 and n_images 5"):
        load(dataset="image_folder", path=folder, n_images=5, skip=2)


BEFORE = {"n_images": None, "skip": 0, "seed": 0}


@pytest.mark.parametrize(
    ("given", "in_key"),
    [
        ({"dataset": "digits"}, {"dataset": "digits"}),
        ({"dataset": "dsprites"}, {"dataset": "dsprites"}),
        ({"dataset": "image_folder", "path": "x"}, {"dataset": "image_folder", "size": 224}),
        (
            {"dataset": "image_folder", "path": "x", "pixels": "stored", "on_broken": "error"},
            {"dataset": "image_folder", "size": 224},
        ),
        ({"dataset": "digits", "pixels": "lazy", "n_frames": 3, "size": 1}, {"dataset": "digits"}),
    ],
)
def test_keys_made_before_there_were_clips_stay(given, in_key):
    assert parameters_in_key(Params(**given)) == in_key | BEFORE


@pytest.mark.parametrize(
    ("given", "in_key"),
    [
        ({"dataset": "image_folder", "pixels": "lazy"}, {"size": 224, "pixels": "lazy"}),
        ({"dataset": "image_folder", "on_broken": "skip"}, {"size": 224, "on_broken": "skip"}),
        ({"dataset": "video_folder"}, {"size": 224, "n_frames": 8, "frame_stride": 1}),
        ({"dataset": "moving_sprites"}, {"n_frames": 8, "speeds": [1], "motion": "moving"}),
        (
            {"dataset": "moving_sprites", "classes": "start"},
            {"n_frames": 8, "speeds": [1], "motion": "moving", "classes": "start"},
        ),
    ],
)
def test_parameters_that_have_an_effect_are_in_the_key(given, in_key):
    path = {} if given["dataset"] == "moving_sprites" else {"path": "x"}
    found = parameters_in_key(Params(**given, **path))
    assert found == {"dataset": given["dataset"]} | in_key | BEFORE


# --- clips


def test_clips_of_a_folder_are_the_frames_in_the_middle(clips):
    images = load(dataset="video_folder", path=clips, size=5, n_frames=2, frame_stride=2)
    assert images["pixels"].dims == ("image", "frame", "channel", "row", "column")
    found = dict(zip(images["image"].values, images["pixels"].values[:, :, 0, 0, 0].tolist(), strict=True))
    assert found == {f"class{n % 2}/{n}": [10 * n + 1, 10 * n + 3] for n in range(6)}
    assert images["frame"].values.tolist() == [0, 1]


def test_moving_sprites_may_be_classed_by_where_they_start():
    params = {"dataset": "moving_sprites", "n_images": 60, "n_frames": 4}
    by_direction, by_start = load(**params), load(**params, classes="start")
    named = by_start["class_name"].values[by_start["label"]]
    down = np.where(by_start["position_y"] * 31 < 16, "top", "bottom")
    right = np.where(by_start["position_x"] * 31 < 16, "left", "right")
    assert named.tolist() == [f"{a} {b}" for a, b in zip(down, right, strict=True)]
    assert len(set(named)) == 4
    clips = [some.drop_vars(["label", "class", "class_name"]) for some in (by_direction, by_start)]
    xr.testing.assert_identical(*clips)


def test_moving_sprites_are_drawn_as_their_ids_say():
    params = {"dataset": "moving_sprites", "n_images": 30, "n_frames": 4, "speeds": [1, 2], "seed": 5}
    moving, static = load(**params), load(**params, motion="static")
    assert moving["class_name"].values.tolist() == ["right", "left", "down", "up"]
    assert set(moving["label"].values) == {0, 1, 2, 3}
    assert moving["image"].values.tolist() == static["image"].values.tolist()
    numbers = [int(name.rpartition("-")[2]) for name in moving["image"].values]
    np.testing.assert_array_equal(moving["pixels"][:, 0, 0], dsprites.render(np.array(numbers)))
    assert (static["pixels"] == static["pixels"][:, 0]).all()
    assert not (moving["pixels"] == static["pixels"]).all()


# --- files that stay where they are


@pytest.mark.parametrize("dataset", ["image_folder", "video_folder"])
def test_lazy_images_are_the_stored_ones(dataset, request):
    path = request.getfixturevalue("folder" if dataset == "image_folder" else "clips")
    params = {"dataset": dataset, "path": path, "size": 5, "n_images": 4, "skip": 1, "n_frames": 3}
    stored, lazy = load(**params), load(**params, pixels="lazy")
    assert lazy.drop_vars("pixel_hash").drop_attrs(deep=False).identical(stored)


# --- broken files


def cut_short(folder: str, name: str) -> None:
    file = Path(folder, name)
    file.write_bytes(file.read_bytes()[:40])


@pytest.mark.parametrize("pixels", ["stored", "lazy"])
def test_every_broken_file_is_reported(folder, pixels):
    cut_short(folder, "class0/2.png")
    cut_short(folder, "class1/5.png")
    with pytest.raises(StepError) as caught:
        load(dataset="image_folder", path=folder, size=5, pixels=pixels)
    head, *broken = str(caught.value).split("\n")
    assert head == "image_folder: 2 of 6 files cannot be read:"
    assert [line.partition(": ")[0] for line in broken] == ["  class0/2.png", "  class1/5.png"]
    assert folder not in str(caught.value)


@pytest.mark.parametrize("pixels", ["stored", "lazy"])
def test_broken_files_are_left_out_and_told_where_that_is_asked_for(folder, pixels, caplog):
    params = {"dataset": "image_folder", "path": folder, "size": 5, "pixels": pixels}
    whole = load(**params)
    cut_short(folder, "class0/2.png")
    found = load(**params, on_broken="skip")
    names = [name for name in whole["image"].values if name != "class0/2.png"]
    assert found["image"].values.tolist() == names
    np.testing.assert_array_equal(found["pixels"], whole["pixels"].sel(image=names))
    np.testing.assert_array_equal(found["label"], whole["label"].sel(image=names))
    assert (found.attrs["n_left_out"], found.attrs["left_out"]) == (1, ["class0/2.png"])
    (record,) = caplog.records
    assert record.getMessage().startswith("left out: class0/2.png: ")


def test_a_sample_without_its_broken_files_takes_none_from_beyond_it(folder):
    params = {"dataset": "image_folder", "path": folder, "size": 5, "n_images": 3}
    first, rest = load(**params), load(**params, skip=3)
    cut_short(folder, str(first["image"].values[1]))
    assert load(**params, on_broken="skip")["image"].values.tolist() == first["image"].values[[0, 2]].tolist()
    without = load(**params, skip=3, on_broken="skip")
    assert without["image"].equals(rest["image"]) and without.attrs["n_left_out"] == 0


def test_clips_too_short_are_left_out_where_that_is_asked_for(clips):
    Path(clips, "class1/3/4.png").unlink()
    params = {"dataset": "video_folder", "path": clips, "size": 5, "n_frames": 5}
    with pytest.raises(StepError, match="class1/3: too short: it has 4 frames"):
        load(**params)
    found = load(**params, on_broken="skip")
    assert found.sizes["image"] == 5 and found.attrs["left_out"] == ["class1/3"]


def test_what_is_no_image_is_an_error_all_the_same(folder):
    Path(folder, "class0/notes.txt").write_text("text")
    with pytest.raises(
        StepError, match="1 of 7 files cannot be read:\n  class0/notes.txt: not an image file"
    ):
        load(dataset="image_folder", path=folder, on_broken="skip")


def test_a_sample_of_broken_files_only_is_refused(folder):
    for name in Path(folder).rglob("*.png"):
        name.write_bytes(b"")
    with pytest.raises(StepError, match="6 of 6 files cannot be read"):
        load(dataset="image_folder", path=folder, on_broken="skip")
