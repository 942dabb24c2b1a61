from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from prisma_steps import schema
from prisma_steps.models.loading import load_model, model_files
from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.seeding import torch_generator
from prisma_steps.step import Artifact, Job, StepError
from prisma_steps.steps.patch_activations import Params, patch_activations
from tests.artifacts import saved, scaled

CLASS_NAMES = ["square", "ellipse", "heart"]
CONFIG = ToyViTConfig(
    n_layers=2, d_model=16, n_heads=2, d_mlp=32, patch_size=4, image_size=8, n_channels=1, n_classes=3
)
ANY = {"only_correct": False, "n_pairs": 4}


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    vit = ToyViT.initialised(CONFIG, torch_generator(0, "weights"))
    return saved(vit, tmp_path, xr.Dataset(coords={"class_name": ("class", CLASS_NAMES)}))


@pytest.fixture
def images() -> xr.Dataset:
    """Three shapes at each of six places."""
    random = np.random.default_rng(0)
    shape = np.repeat(np.arange(3), 6)
    return xr.Dataset(
        {"pixels": (("image", "channel", "row", "column"), random.integers(0, 256, (18, 1, 8, 8), "uint8"))},
        coords={
            "image": [f"sprite-{n:02}" for n in range(18)],
            "label": ("image", shape),
            "scale": ("image", np.ones(18)),
            "orientation": ("image", np.zeros(18)),
            "position_x": ("image", np.tile(np.arange(6.0), 3)),
            "position_y": ("image", np.ones(18)),
            "class_name": ("class", CLASS_NAMES),
        },
    )


def by_id(images: xr.Dataset, ids: xr.DataArray) -> xr.Dataset:
    return images.sel(image=ids.values)


def minus(logits: torch.Tensor) -> float:
    first, second = logits.tolist()
    return first - second


def test_artifact_fits_the_schema(model: Artifact, images: xr.Dataset) -> None:
    found = patch_activations(model, images, Params(**ANY), Job())
    schema.check(found, schema.Patching)
    assert found["normalised_logit_difference"].dims == ("pair", "layer", "token")
    assert found.sizes == {"pair": 4, "layer": 2, "token": 5}
    assert found["token_kind"].values.tolist() == ["cls"] + ["patch"] * 4
    assert all({"long_name", "units"} <= set(found[name].attrs) for name in found.variables)
    assert found.attrs == {"site": "resid_pre", "direction": "denoising"}


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_a_cell_is_the_hooked_run_that_its_labels_tell(
    model: Artifact, images: xr.Dataset, direction: str
) -> None:
    found = patch_activations(model, images, Params(direction=direction, **ANY), Job())
    cell = found.isel(pair=2, layer=1, token=3)
    vit = load_model(model)
    sides = {
        side: by_id(images, cell[f"{side}_image"].expand_dims("image")) for side in ("clean", "corrupted")
    }
    pixels = {side: scaled(chosen) for side, chosen in sides.items()}
    source, target = ("clean", "corrupted") if direction == "denoising" else ("corrupted", "clean")
    _, cache = vit.run_with_cache(pixels[source], ["resid_pre"])

    def patch(resid: torch.Tensor) -> torch.Tensor:
        resid = resid.clone()
        resid[:, 3] = cache["resid_pre", 1][:, 3]
        return resid

    classes = [CLASS_NAMES.index(cell[f"{side}_class"].item()) for side in ("clean", "corrupted")]
    difference = {side: minus(vit(pixels[side])[0, classes]) for side in sides}
    patched = minus(vit.run_with_hooks(pixels[target], {("resid_pre", 1): patch})[0, classes])
    # Float32 sums in another order, at logits of about 1.
    close = {"rel": 1e-4, "abs": 1e-5}
    assert float(cell["logit_difference"]) == pytest.approx(patched, **close)
    assert float(cell["clean_logit_difference"]) == pytest.approx(difference["clean"], **close)
    assert float(cell["corrupted_logit_difference"]) == pytest.approx(difference["corrupted"], **close)
    expected = (patched - difference["corrupted"]) / (difference["clean"] - difference["corrupted"])
    assert float(cell["normalised_logit_difference"]) == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_cls_before_the_first_block_is_no_patch_at_all(model: Artifact, images: xr.Dataset) -> None:
    for direction, end in (("denoising", 0.0), ("noising", 1.0)):
        found = patch_activations(model, images, Params(direction=direction, **ANY), Job())
        cells = found["normalised_logit_difference"].sel(layer=0, token=0)
        np.testing.assert_allclose(cells, end, atol=1e-4)


def test_pairs_are_of_two_classes_and_labelled_truly(model: Artifact, images: xr.Dataset) -> None:
    found = patch_activations(model, images, Params(**ANY), Job())
    for side in ("clean", "corrupted"):
        label = by_id(images, found[f"{side}_image"])["label"].values
        assert [CLASS_NAMES[index] for index in label] == found[f"{side}_class"].values.tolist()
    assert (found["clean_class"] != found["corrupted_class"]).all()
    used = [*found["clean_image"].values, *found["corrupted_image"].values]
    assert len(set(used)) == 8


def test_twins_share_their_factors(model: Artifact, images: xr.Dataset) -> None:
    found = patch_activations(model, images, Params(pairing="twin", **ANY), Job())
    clean, corrupted = (by_id(images, found[f"{side}_image"]) for side in ("clean", "corrupted"))
    assert clean["position_x"].values.tolist() == corrupted["position_x"].values.tolist()
    assert (clean["label"].values != corrupted["label"].values).all()


def test_twins_need_factors(model: Artifact, images: xr.Dataset) -> None:
    with pytest.raises(StepError, match="have no scale, position_y"):
        patch_activations(
            model, images.drop_vars(["scale", "position_y"]), Params(pairing="twin", **ANY), Job()
        )


def test_only_images_classified_correctly_are_used(model: Artifact, images: xr.Dataset) -> None:
    pixels = scaled(images)
    vit = load_model(model)
    vit.model.head.bias -= vit(pixels).mean(0)  # else the untrained model gives all images one class
    model_files(vit.model)["model.safetensors"](model.folder / "model.safetensors")
    answer = vit(pixels).argmax(-1).numpy()
    correct = np.arange(18) >= 4
    images["label"] = ("image", np.where(correct, answer, (answer + 1) % 3))
    found = patch_activations(model, images, Params(n_pairs=4), Job())
    used = {*found["clean_image"].values, *found["corrupted_image"].values}
    assert used <= set(images["image"].values[correct])
    assert (found["clean_logit_difference"] > 0).all()
    assert (found["corrupted_logit_difference"] < 0).all()


def test_pairs_follow_the_seed(model: Artifact, images: xr.Dataset) -> None:
    first, again, other = (
        patch_activations(model, images, Params(seed=seed, **ANY), Job()) for seed in (0, 0, 1)
    )
    assert first.identical(again)
    assert first["clean_image"].values.tolist() != other["clean_image"].values.tolist()


def test_progress_reaches_the_end(model: Artifact, images: xr.Dataset) -> None:
    told: list[tuple[int, int]] = []
    patch_activations(
        model, images, Params(**ANY), Job(report=lambda done, total, _: told.append((done, total)))
    )
    assert told == [(1, 2), (2, 2)]


def test_too_few_pairs(model: Artifact, images: xr.Dataset) -> None:
    with pytest.raises(StepError, match="n_pairs is 10, but the 18 images give only 9 pairs"):
        patch_activations(model, images, Params(only_correct=False, n_pairs=10), Job())


def test_one_image_as_its_own_counterpart(model: Artifact, images: xr.Dataset) -> None:
    images["pixels"][:] = images["pixels"][0]
    with pytest.raises(StepError, match="4 of 4 pairs have the same logit difference"):
        patch_activations(model, images, Params(**ANY), Job())


def test_other_classes_than_the_models(model: Artifact, images: xr.Dataset) -> None:
    with pytest.raises(
        StepError, match=r"classes are \['a', 'b', 'c'\], the model was trained on \['square'"
    ):
        patch_activations(
            model, images.assign_coords(class_name=("class", ["a", "b", "c"])), Params(**ANY), Job()
        )
    with pytest.raises(StepError, match="no classes"):
        patch_activations(model, images.drop_vars("class_name"), Params(**ANY), Job())
