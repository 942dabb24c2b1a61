from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from pydantic import ValidationError

from prisma_steps import schema
from prisma_steps.analysis import patching
from prisma_steps.data.pairs import prepared_sides
from prisma_steps.fingerprint import parameters_in_key
from prisma_steps.job import Job
from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.loading import load_model
from prisma_steps.models.toy_vit import ToyViTConfig
from prisma_steps.step import Artifact, StepError
from prisma_steps.steps import patch_activations as step
from prisma_steps.steps.pair_images import Params as PairParams
from prisma_steps.steps.pair_images import pair_images
from prisma_steps.steps.patch_activations import METRICS, Params, patch_activations
from tests.steps.pairing import CLASS_NAMES, eighteen_images, model_in

# Float32 sums in another order, at logits of about 1.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    return model_in(tmp_path)


@pytest.fixture
def images() -> xr.Dataset:
    return eighteen_images()


@pytest.fixture
def pairs(model: Artifact, images: xr.Dataset) -> xr.Dataset:
    return paired(model, images)


def paired(model: Artifact, images: xr.Dataset, **params: Any) -> xr.Dataset:
    return pair_images(model, images, PairParams(only_correct=False, n_pairs=4, **params), Job())


def patched(model: Artifact, images: xr.Dataset, pairs: xr.Dataset, **params: Any) -> xr.Dataset:
    found = patch_activations(model, images, pairs, Params(**params), Job())
    schema.check(found, schema.Patching)
    return found


def test_artifact_is_labelled(model: Artifact, images: xr.Dataset, pairs: xr.Dataset) -> None:
    found = patched(model, images, pairs)
    assert found["normalised_logit_difference"].dims == ("pair", "layer", "token")
    assert found.sizes == {"pair": 4, "layer": 2, "token": 5}
    assert found["token_kind"].values.tolist() == ["cls"] + ["patch"] * 4
    assert all({"long_name", "units"} <= set(found[name].attrs) for name in found.variables)
    assert found.attrs == {"site": "resid_pre", "direction": "denoising", "compute_dtype": "float32"}
    for name in ("clean_image", "corrupted_image", "clean_class", "corrupted_class"):
        assert found[name].equals(pairs[name].assign_coords(found[name].coords))
    assert {name.removeprefix("clean_") for name in found.data_vars if name.startswith("clean_")} == set(
        METRICS
    )


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("pairing", [{}, {"pairing": "gaussian_noise"}])
def test_a_cell_is_the_hooked_run_that_its_labels_tell(
    model: Artifact, images: xr.Dataset, direction: str, pairing: dict[str, str]
) -> None:
    pairs = paired(model, images, **pairing)
    found = patched(model, images, pairs, direction=direction)
    cell = found.isel(pair=2, layer=1, token=3)
    vit = load_model(model)
    sides = prepared_sides(images, pairs, slice(2, 3), vit.preprocess)
    source, target = sides if direction == "denoising" else sides[::-1]
    put = vit.read(source, ["resid_pre"])["resid_pre", 1]

    def patch(resid: torch.Tensor) -> torch.Tensor:
        resid = resid.clone()
        resid[:, 3] = put[:, 3]
        return resid

    classes = [CLASS_NAMES.index(cell[f"{side}_class"].item()) for side in ("clean", "corrupted")]
    runs = [vit(side)[0] for side in sides]
    runs.append(vit.run_with_hooks(target, {("resid_pre", 1): patch})[0])
    log_p = [run.log_softmax(-1) for run in runs]
    expected = {
        "logit_difference": [(run[classes[0]] - run[classes[1]]).item() for run in runs],
        "probability": [some[classes[0]].exp().item() for some in log_p],
        "ce": [-some[classes[0]].item() for some in log_p],
        "kl": [(log_p[0].exp() * (log_p[0] - some)).sum().item() for some in log_p],
    }
    for name, (clean, corrupted, value) in expected.items():
        np.testing.assert_allclose(cell[f"clean_{name}"], clean, **CLOSE)
        np.testing.assert_allclose(cell[f"corrupted_{name}"], corrupted, **CLOSE)
        np.testing.assert_allclose(cell[name], value, **CLOSE)
        scaled = (value - corrupted) / (clean - corrupted)
        # The ends lie near each other in an untrained model, by which float32's rounding grows.
        np.testing.assert_allclose(cell[f"normalised_{name}"], scaled, rtol=2e-2, atol=2e-2)


def test_cls_before_the_first_block_is_no_patch_at_all(
    model: Artifact, images: xr.Dataset, pairs: xr.Dataset
) -> None:
    for direction, end in (("denoising", 0.0), ("noising", 1.0)):
        found = patched(model, images, pairs, direction=direction)
        cells = found["normalised_logit_difference"].sel(layer=0, token=0)
        np.testing.assert_allclose(cells, end, atol=1e-4)


def test_several_sites_lie_along_a_dimension(model: Artifact, images: xr.Dataset, pairs: xr.Dataset) -> None:
    sites = ["mlp_out", "resid_mid"]
    found = patched(model, images, pairs, site=sites, layers=[1, 0], tokens=[4, 1])
    assert found["logit_difference"].dims == ("pair", "site", "layer", "token")
    for site in sites:
        alone = patched(model, images, pairs, site=site)
        xr.testing.assert_allclose(
            found[list(METRICS)].sel(site=site, drop=True),
            alone[list(METRICS)].sel(layer=[1, 0], token=[4, 1]),
            rtol=1e-4,
            atol=1e-5,
        )


def test_heads(model: Artifact, images: xr.Dataset, pairs: xr.Dataset) -> None:
    sites = ["q", "k", "v", "z", "pattern"]
    found = patched(model, images, pairs, site=sites)
    assert found["kl"].dims == ("pair", "site", "layer", "head")
    assert "token" not in found.coords
    found = patched(model, images, pairs, site=sites, each_token=True, tokens=[0, 2])
    assert found["kl"].sizes == {"pair": 4, "site": 5, "layer": 2, "head": 2, "token": 2}
    # The last layer's other tokens read no more that reaches the answer.
    rows = found.sel(layer=1, token=2, site=["q", "z", "pattern"])["normalised_logit_difference"]
    np.testing.assert_allclose(rows, 0, atol=1e-4)


def test_memory_changes_no_cell_and_no_key(
    model: Artifact, images: xr.Dataset, pairs: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = patched(model, images, pairs, site=["k", "z"], each_token=True)
    monkeypatch.setattr(patching, "pairs_per_block", lambda *_: 3)
    told: list[tuple[int, int]] = []
    params = Params(site=["k", "z"], each_token=True, memory_mb=1)
    job = Job(report=lambda done, total, _: told.append((done, total)))
    found = patch_activations(model, images, pairs, params, job)
    xr.testing.assert_allclose(found[list(METRICS)], whole[list(METRICS)], rtol=1e-4, atol=1e-5)
    assert told[-1] == (8, 8)
    assert parameters_in_key(params) == parameters_in_key(Params(site=["k", "z"], each_token=True))


def test_bfloat16_says_so(model: Artifact, images: xr.Dataset, pairs: xr.Dataset) -> None:
    found = patched(model, images, pairs, compute_dtype="bfloat16")
    assert found.attrs["compute_dtype"] == "bfloat16"
    exact = patched(model, images, pairs)
    assert found["logit_difference"].dtype == np.float32
    # 8 significant bits, at logits of about 1
    np.testing.assert_allclose(found["logit_difference"], exact["logit_difference"], atol=0.1)
    assert not found["logit_difference"].equals(exact["logit_difference"])


@pytest.fixture
def clips(tmp_path: Path) -> tuple[Artifact, xr.Dataset]:
    """A model of clips of two tubelets in time, and clips for it."""
    config = ToyViTConfig(
        n_layers=2, d_model=8, n_heads=1, d_mlp=8, patch_size=4, image_size=8, n_channels=1, n_classes=3,
        n_frames=4, tubelet_size=2,
    )  # fmt: skip
    still = eighteen_images()
    clips = xr.concat([still["pixels"], 255 - still["pixels"]] * 2, "frame").to_dataset()
    clips = clips.transpose("image", "frame", ...).assign_coords(still.coords)
    return model_in(tmp_path / "of_clips", config), clips


def test_a_clip_keeps_its_frames(clips: tuple[Artifact, xr.Dataset]) -> None:
    pairs = paired(*clips, pairing="masked_patches", patches=0.5)
    found = patched(*clips, pairs, site="resid_post")
    assert found["patch_frame"].values.tolist() == [-1, 0, 0, 0, 0, 1, 1, 1, 1]
    by_frame = found["logit_difference"].groupby("patch_frame").mean()
    assert by_frame.sizes["patch_frame"] == 3


@pytest.mark.parametrize(
    ("together", "sets"),
    [
        ("frame", {-1: [0], 0: [1, 2, 3, 4], 1: [5, 6, 7, 8]}),
        ("frames_so_far", {-1: [0], 0: [0, 1, 2, 3, 4], 1: [0, 1, 2, 3, 4, 5, 6, 7, 8]}),
    ],
)
def test_frames_are_patched_whole(
    clips: tuple[Artifact, xr.Dataset], together: str, sets: dict[int, list[int]]
) -> None:
    pairs = paired(*clips)
    found = patched(*clips, pairs, together=together, site=["resid_pre", "mlp_out"])
    assert found["kl"].dims == ("pair", "site", "layer", "patch_frame") and "token" not in found.coords
    assert found["patch_frame"].values.tolist() == list(sets) and found.attrs["together"] == together
    vit = load_model(clips[0])
    clean, corrupted = prepared_sides(clips[1], pairs, slice(None), vit.preprocess)
    wanted = [CLASS_NAMES.index(name) for name in pairs["clean_class"].values]
    for frame, tokens in sets.items():
        for site in ("resid_pre", "mlp_out"):
            put = vit.read(clean, [site])[site, 1]

            def patch(value: torch.Tensor, put: torch.Tensor = put, tokens=tokens) -> torch.Tensor:
                value = value.clone()
                value[:, tokens] = put[:, tokens]
                return value

            expected = vit.run_with_hooks(corrupted, {(site, 1): patch}).softmax(-1)[range(4), wanted]
            cells = found["probability"].sel(layer=1, patch_frame=frame, site=site)
            np.testing.assert_allclose(cells, expected, **CLOSE)


def test_frames_are_of_clips(model: Artifact, images: xr.Dataset, pairs: xr.Dataset) -> None:
    with pytest.raises(StepError, match="together: frame is for clips, and the model takes still images"):
        patched(model, images, pairs, together="frame")


def test_nothing_to_restore_is_nan(model: Artifact, images: xr.Dataset, pairs: xr.Dataset) -> None:
    """A model that answers every image alike."""
    from prisma_steps.models.loading import model_files

    vit = load_model(model)
    vit.model.head.weight.zero_()
    model_files(vit.model)["model.safetensors"](model.folder / "model.safetensors")
    found = patched(model, images, pairs)
    assert found["normalised_logit_difference"].isnull().all()
    np.testing.assert_allclose(found["kl"], 0)
    assert found["logit_difference"].notnull().all()


def test_bad_input_is_refused_before_the_first_forward(
    model: Artifact, images: xr.Dataset, pairs: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HookedViT, "_run", lambda *_: pytest.fail("a forward pass"))

    def refused(message: str, pairs: xr.Dataset = pairs, images: xr.Dataset = images, **params: Any) -> None:
        with pytest.raises(StepError, match=message):
            patched(model, images, pairs, **params)

    itself = pairs.assign_coords(corrupted_image=pairs["clean_image"])
    refused("pair 0 is of the image .* with itself", itself)
    circles = pairs.assign_coords(corrupted_class=("pair", ["circle"] * 4))
    refused("the class 'circle' is none of the model's, which are square, ellipse, heart", circles)
    refused("which is not among the 2 images", images=images.isel(image=slice(2)))
    refused("no layer 2 at site .resid_pre.: the model has layers 0 to 1", layers=[2])
    refused("no token 5: the model has tokens 0 to 4", tokens=[5])


def test_a_site_that_the_model_lacks(tmp_path: Path, images: xr.Dataset) -> None:
    config = ToyViTConfig(
        n_layers=1, d_model=8, n_heads=1, patch_size=4, image_size=8, n_channels=1, n_classes=3,
        attention_only=True,
    )  # fmt: skip
    model = model_in(tmp_path, config)
    with pytest.raises(StepError, match="the model has no site 'mlp_out'"):
        patched(model, images, paired(model, images), site="mlp_out")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"site": "ln_final"}, "ln_final is not patched; sites are resid_pre"),
        ({"site": []}, "none is not patched"),
        ({"site": ["z", "z"]}, "each may be named once"),
        ({"site": ["z", "resid_pre"]}, "resid_pre is patched by token, z by head"),
        ({"each_token": True}, "each_token is for heads"),
        ({"site": "z", "tokens": [0]}, "chosen with each_token: true"),
        ({"layers": []}, "at least one"),
        ({"tokens": [-1]}, "numbers from 0"),
        ({"together": "frame", "tokens": [1]}, "frame patches all tokens of sites of the stream"),
        ({"together": "frames_so_far", "site": "z"}, "patches all tokens of sites of the stream"),
    ],
)
def test_parameters_that_make_no_sense(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Params(**params)


def test_keys_made_before_frames_were_patched_stay() -> None:
    assert "together" not in parameters_in_key(Params())
    assert parameters_in_key(Params(together="frame"))["together"] == "frame"


def test_sites_are_those_of_the_kernels() -> None:
    assert set(step.OF_TOKENS) == set(patching.TOKEN_SITES)
    assert set(step.OF_HEADS) == set(patching.HEAD_SITES)
