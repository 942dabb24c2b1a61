from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from prisma_steps import schema
from prisma_steps.data import digits, dsprites
from prisma_steps.step import Job, StepError
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


@pytest.mark.parametrize("dataset", ["dsprites", "digits", "image_folder"])
def test_every_data_set_gives_images(dataset, folder):
    images = load(dataset=dataset, n_images=5, **({"path": folder} if dataset == "image_folder" else {}))
    schema.check(images, schema.Images)
    assert images.sizes["image"] == 5 and images["pixels"].dtype == np.uint8
    assert images["pixels"].attrs == {"long_name": "intensity", "units": "1/255"}
    assert images["class_name"].dims == ("class",)


def test_counts_are_those_of_the_data_sets():
    assert {"dsprites": dsprites.COUNT, "digits": digits.source().count} == module.COUNTS


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
        ({"dataset": "digits", "path": "x"}, "`path` is for dataset: image_folder, not for digits"),
        (
            {"dataset": "digits", "n_images": 1798},
            "digits has 1,797 images; skip 0 and n_images 1,798 ask for more",
        ),
        ({"dataset": "digits", "skip": 1797}, "skip 1,797 and n_images all ask for more"),
        ({"dataset": "dsprites", "n_images": 1, "skip": 737_280}, "dsprites has 737,280 images"),
        ({"dataset": "dsprites", "n_images": 0}, "greater than 0"),
        ({"dataset": "mnist"}, "'dsprites', 'digits' or 'image_folder'"),
    ],
)
def test_parameters_that_cannot_be_met_are_refused(params, message):
    with pytest.raises(ValidationError, match=message):
        Params(**params)


def test_a_folder_with_fewer_images_than_asked_for_is_refused(folder):
    with pytest.raises(StepError, match="load_images: image_folder has 6 images; skip 2 and n_images 5"):
        load(dataset="image_folder", path=folder, n_images=5, skip=2)


def test_parameters_without_effect_are_marked():
    marks = {
        name: field.json_schema_extra
        for name, field in Params.model_fields.items()
        if field.json_schema_extra
    }
    assert marks == {name: {"only_for": {"dataset": ["image_folder"]}} for name in ("path", "size")}
