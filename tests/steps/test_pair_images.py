from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from pydantic import ValidationError

from prisma_steps import schema
from prisma_steps.data import dsprites
from prisma_steps.data.pairs import check_pairs, raw_sides
from prisma_steps.job import Job
from prisma_steps.models.loading import load_model, model_files
from prisma_steps.models.toy_vit import ToyViTConfig
from prisma_steps.step import Artifact, StepError
from prisma_steps.steps.pair_images import Params, pair_images
from tests.artifacts import scaled
from tests.steps.pairing import CLASS_NAMES, eighteen_images, model_in


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    return model_in(tmp_path)


@pytest.fixture
def images() -> xr.Dataset:
    return eighteen_images()


def paired(model: Artifact, images: xr.Dataset, **params: Any) -> xr.Dataset:
    found = pair_images(model, images, Params(**{"only_correct": False, "n_pairs": 4, **params}), Job())
    schema.check(found, schema.Pairs)
    check_pairs(images, found)
    return found


def labels_of(images: xr.Dataset, ids: xr.DataArray) -> list[str]:
    return [CLASS_NAMES[label] for label in images.sel(image=ids.values)["label"].values]


def answers(model: Artifact, raw: torch.Tensor) -> torch.Tensor:
    return load_model(model)(raw.float() / 255)


def test_pairs_of_two_classes_are_labelled_truly(model: Artifact, images: xr.Dataset) -> None:
    found = paired(model, images)
    assert found.sizes["pair"] == 4
    assert "corrupted_pixels" not in found
    for side in ("clean", "corrupted"):
        assert labels_of(images, found[f"{side}_image"]) == found[f"{side}_class"].values.tolist()
    assert (found["clean_class"] != found["corrupted_class"]).all()
    assert len({*found["clean_image"].values, *found["corrupted_image"].values}) == 8
    assert all({"long_name", "units"} <= set(found[name].attrs) for name in found.variables)


def test_only_images_classified_correctly_are_used(model: Artifact, images: xr.Dataset) -> None:
    pixels = scaled(images)
    vit = load_model(model)
    vit.model.head.bias -= vit(pixels).mean(0)  # else the untrained model gives all images one class
    model_files(vit.model)["model.safetensors"](model.folder / "model.safetensors")
    answer = vit(pixels).argmax(-1).numpy()
    correct = np.arange(18) >= 4
    images["label"] = ("image", np.where(correct, answer, (answer + 1) % 3))
    allowed = set(images["image"].values[correct])
    found = paired(model, images, only_correct=True)
    assert {*found["clean_image"].values, *found["corrupted_image"].values} <= allowed
    found = paired(model, images, only_correct=True, pairing="mean_image", n_pairs=14)
    assert set(found["clean_image"].values) == allowed
    with pytest.raises(StepError, match=r"give only 14 pairs .* that the model classifies correctly\)"):
        paired(model, images, only_correct=True, pairing="mean_image", n_pairs=15)


def test_pairs_follow_the_seed(model: Artifact, images: xr.Dataset) -> None:
    for more in ({}, {"pairing": "gaussian_noise"}, {"pairing": "masked_patches", "patches": 0.5}):
        first, again, other = (paired(model, images, seed=seed, **more) for seed in (0, 0, 1))
        assert first.identical(again)
        assert not first.equals(other)


def test_noise(model: Artifact, images: xr.Dataset) -> None:
    found = paired(model, images, pairing="gaussian_noise", sigma=5.0)
    clean, corrupted = raw_sides(images, found, slice(None))
    assert 0 < (clean.double() - corrupted.double()).std() < 6
    assert found["corrupted_image"].values[0] == f"{found['clean_image'].values[0]} + noise"
    assert found["corrupted_pixels"].dims == ("pair", "channel", "row", "column")


def test_more_pairs_leave_the_first_as_they_are(model: Artifact, images: xr.Dataset) -> None:
    few, many = (paired(model, images, pairing="gaussian_noise", n_pairs=n) for n in (3, 9))
    assert few.equals(many.isel(pair=slice(3)))


def test_the_corrupted_class_is_the_likeliest_other_one(model: Artifact, images: xr.Dataset) -> None:
    found = paired(model, images, pairing="gaussian_noise", n_pairs=12)
    logits = answers(model, raw_sides(images, found, slice(None))[1])
    for row, (clean, corrupted) in zip(
        logits.tolist(), found[["clean_class", "corrupted_class"]].to_dataframe().values[:, :2], strict=True
    ):
        others = {name: value for name, value in zip(CLASS_NAMES, row, strict=True) if name != clean}
        assert corrupted == max(others, key=lambda name: others[name])


def test_masked_patches(model: Artifact, images: xr.Dataset) -> None:
    found = paired(model, images, pairing="masked_patches", patches=[1], fill=7)
    clean, corrupted = raw_sides(images, found, slice(None))
    assert (corrupted[..., :4, 4:] == 7).all()
    corrupted[..., :4, 4:] = clean[..., :4, 4:]
    assert torch.equal(clean, corrupted)


def test_mean_image(model: Artifact, images: xr.Dataset) -> None:
    found = paired(model, images, pairing="mean_image")
    expected = np.rint(images["pixels"].values.mean(0)).astype(np.uint8)
    assert all(np.array_equal(pixels, expected) for pixels in found["corrupted_pixels"].values)


def test_an_image_that_stays_as_it_was_makes_no_pair(model: Artifact, images: xr.Dataset) -> None:
    images["pixels"][:5, :, :4, :4] = 9
    found = paired(model, images, pairing="masked_patches", patches=[0], fill=9, n_pairs=13)
    assert not set(found["clean_image"].values) & set(images["image"].values[:5])
    with pytest.raises(StepError, match="n_pairs is 14, but the 18 images give only 13 pairs"):
        paired(model, images, pairing="masked_patches", patches=[0], fill=9, n_pairs=14)


def sprites(tmp_path: Path) -> tuple[Artifact, xr.Dataset]:
    model = model_in(
        tmp_path, ToyViTConfig(n_layers=1, d_model=8, n_heads=1, d_mlp=8, patch_size=32, n_classes=3)
    )
    index = np.random.default_rng(0).integers(0, dsprites.COUNT, 12)
    source = dsprites.source()
    coords = {name: ("image", value) for name, value in source.coords(index).items()}
    return model, xr.Dataset(
        {"pixels": (("image", "channel", "row", "column"), source.pixels(index))},
        {**coords, "class_name": ("class", CLASS_NAMES)},
    )


@pytest.mark.parametrize("factor", ["shape", "position_x"])
def test_twins(tmp_path: Path, factor: str) -> None:
    model, images = sprites(tmp_path)
    found = paired(model, images, pairing="twin", factor=factor)
    clean, corrupted = (
        dsprites.latents(np.array([int(name[-6:]) for name in found[f"{side}_image"].values]))
        for side in ("clean", "corrupted")
    )
    column = list(dsprites.FACTORS).index(factor)
    assert (clean != corrupted).any(0).nonzero()[0].tolist() == [column]
    assert (found["clean_class"] != found["corrupted_class"]).all()
    shapes = np.array(CLASS_NAMES)[corrupted[:, 0]].tolist()
    assert (found["corrupted_class"].values.tolist() == shapes) == (factor == "shape")
    drawn = dsprites.source().pixels(dsprites.index(corrupted))
    np.testing.assert_array_equal(found["corrupted_pixels"].values, drawn)


def test_a_twin_is_classified_correctly_too(tmp_path: Path) -> None:
    model, images = sprites(tmp_path)
    answer = int(answers(model, torch.from_numpy(images["pixels"].values)).argmax(1).mode().values)
    images["label"] = ("image", np.full(12, answer))  # correct, whatever is drawn
    found = paired(model, images, pairing="twin", only_correct=True)
    number = np.array([int(name[-6:]) for name in found["corrupted_image"].values])
    assert set(dsprites.factors(number)["shape"]) == {CLASS_NAMES[answer]}


def test_a_file_of_pairs(model: Artifact, images: xr.Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    file = folder / "pairs.csv"
    file.write_text("clean,corrupted\nsprite-00,sprite-07\nsprite-12,sprite-13\n")
    found = paired(model, images, pairing="csv", path=str(folder))
    assert found["clean_image"].values.tolist() == ["sprite-00", "sprite-12"]
    assert found["corrupted_image"].values.tolist() == ["sprite-07", "sprite-13"]
    assert found["clean_class"].values.tolist() == ["square", "heart"]
    assert found["corrupted_class"].values[0] == "ellipse"
    assert found["corrupted_class"].values[1] != "heart"
    file.write_text("clean,corrupted,clean_class,corrupted_class\nsprite-00,sprite-01,square,heart\n")
    found = paired(model, images, pairing="csv", path=str(folder))
    assert found["corrupted_class"].values.tolist() == ["heart"]


def test_a_file_is_read_before_the_model_runs(
    model: Artifact, images: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prisma_steps.models.hooked import HookedViT

    monkeypatch.setattr(HookedViT, "_run", lambda *_: pytest.fail("a forward pass"))
    (tmp_path / "pairs.csv").write_text("clean,corrupted\nsprite-00,sprite-00\n")
    with pytest.raises(StepError, match="sprite-00 is paired with itself"):
        paired(model, images, pairing="csv", path=str(tmp_path))
    (tmp_path / "pairs.csv").write_text("clean,corrupted,clean_class\nsprite-00,sprite-01,circle\n")
    with pytest.raises(StepError, match="no class 'circle'"):
        paired(model, images, pairing="csv", path=str(tmp_path))


def test_images_that_look_the_same(model: Artifact, images: xr.Dataset) -> None:
    images["pixels"][:] = images["pixels"][0]
    with pytest.raises(StepError, match="have the same pixels"):
        paired(model, images)


def test_images_that_do_not_fit(model: Artifact, images: xr.Dataset) -> None:
    with pytest.raises(StepError, match="the class 'a' is none of the model's, which are square, ellipse"):
        paired(model, images.assign_coords(class_name=("class", ["a", "b", "c"])))
    with pytest.raises(StepError, match="the images have no classes"):
        paired(model, images.drop_vars("class_name"))
    with pytest.raises(StepError, match="no patch 4: the model has 2 × 2"):
        paired(model, images, pairing="masked_patches", patches=[0, 4])
    large = xr.concat([images["pixels"]] * 2, "row").to_dataset().assign_coords(images.coords)
    with pytest.raises(StepError, match="the images have 16 × 8 pixels, the model takes 8 × 8"):
        paired(model, large, pairing="masked_patches", patches=0.5)
    with pytest.raises(StepError, match="n_pairs is 10, but the 18 images give only 9 pairs"):
        paired(model, images, n_pairs=10)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"pairing": "masked_patches"}, "masked_patches needs `patches`"),
        ({"pairing": "csv"}, "csv needs `path`"),
        ({"patches": 1.5}, "a share of the patches is above 0, up to 1"),
        ({"patches": [1, 1]}, "each named once"),
        ({"fill": 256}, "a grey level is from 0 to 255"),
        ({"sigma": 0.0}, "greater than 0"),
    ],
)
def test_parameters_that_make_no_sense(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Params(**params)
