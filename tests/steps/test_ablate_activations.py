from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from pydantic import ValidationError
from transformers import ViTConfig, ViTModel

from prisma_steps import schema
from prisma_steps.job import Job
from prisma_steps.models.loading import load_model
from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.seeding import torch_generator
from prisma_steps.step import Artifact, StepError
from prisma_steps.steps.ablate_activations import Params, _others, ablate_activations, effects_of_ablations
from tests.artifacts import saved, scaled
from tests.models.families import make

CLASS_NAMES = ["square", "ellipse", "heart"]
SIZES: dict[str, Any] = {
    "n_layers": 2,
    "d_model": 16,
    "n_heads": 2,
    "d_mlp": 32,
    "patch_size": 4,
    "image_size": 8,
    "n_channels": 1,
    "n_classes": 3,
}
# float32 runs of batches of other sizes, at cross-entropies of about 1.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    vit = ToyViT.initialised(ToyViTConfig(**SIZES), torch_generator(0, "weights"))
    names = xr.Dataset(coords={"class_name": ("class", CLASS_NAMES)})
    return saved(vit, tmp_path_factory.mktemp("model"), names)


def made(count: int, seed: int, name: str = "image", frames: tuple[int, ...] = ()) -> xr.Dataset:
    random = np.random.default_rng(seed)
    dims = ("image", *["frame"] * len(frames), "channel", "row", "column")
    return xr.Dataset(
        {"pixels": (dims, random.integers(0, 256, (count, *frames, 1, 8, 8), "uint8"))},
        coords={
            "image": [f"{name}-{number:02}" for number in range(count)],
            "label": ("image", random.integers(0, 3, count)),
            "class_name": ("class", CLASS_NAMES),
        },
    )


@pytest.fixture
def images() -> xr.Dataset:
    return made(9, 0)


@pytest.fixture
def reference() -> xr.Dataset:
    return made(7, 1, "reference")


def ablate(
    model: Artifact, images: xr.Dataset, reference: xr.Dataset | None = None, **params: Any
) -> xr.Dataset:
    given = {"site": "attn_out", **params}
    return ablate_activations(
        model, images, images if reference is None else reference, Params(**given), Job()
    )


@pytest.mark.parametrize(
    ("site", "dims"), [("attn_out", ("ablation", "layer")), ("z", ("ablation", "layer", "head"))]
)
def test_the_artifact_is_labelled(
    model: Artifact, images: xr.Dataset, site: str, dims: tuple[str, ...]
) -> None:
    found = ablate(model, images, site=site)
    schema.check(found, schema.Ablation)
    assert found["ce_ablated"].dims == found["top1_ablated"].dims == found["ce_increase"].dims == dims
    assert found["ablation"].values.tolist() == ["zero", "mean", "mean_per_token", "resample"]
    assert found["layer"].values.tolist() == [0, 1]
    assert all({"long_name", "units"} <= set(variable.attrs) for variable in found.variables.values())
    assert found.attrs == {"site": site, "tokens": "all", "n_images": 9, "n_reference": 9}
    xr.testing.assert_allclose(found["ce_ablated"] - found["ce"], found["ce_increase"])


@torch.no_grad()
def test_a_cell_is_the_hooked_run_that_its_labels_tell(
    model: Artifact, images: xr.Dataset, reference: xr.Dataset
) -> None:
    """Layer 1, head 0, mean of the reference, of the patches alone."""
    found = ablate(
        model,
        images,
        reference,
        site="z",
        tokens="patch",
        n_images=8,
        n_reference=5,
        ablations=["zero", "mean"],
    )
    cell = found.sel(layer=1, head=0, ablation="mean")
    vit = load_model(model)
    mean = vit.read(scaled(reference)[:5], ["z"])["z", 1][:, 1:, 0].mean((0, 1))

    def hook(z: torch.Tensor) -> torch.Tensor:
        z = z.clone()
        z[:, 1:, 0] = mean
        return z

    pixels, classes = scaled(images)[:8], torch.from_numpy(images["label"].values)[:8]
    for name, logits in {
        "": vit(pixels),
        "_ablated": vit.run_with_hooks(pixels, {("z", 1): hook}),
    }.items():
        ce = torch.nn.functional.cross_entropy(logits.double(), classes).item()
        assert cell[f"ce{name}"].item() == pytest.approx(ce, rel=1e-4)
        assert cell[f"top1{name}"].item() == (logits.argmax(-1) == classes).double().mean().item()
    assert (found.attrs["n_images"], found.attrs["n_reference"]) == (8, 5)


@torch.no_grad()
def test_resampling_takes_the_drawn_image_of_the_reference(
    model: Artifact, images: xr.Dataset, reference: xr.Dataset
) -> None:
    params = Params(site="resid_mid", layers=[1], ablations=["resample"], seed=3)
    found = ablate_activations(model, images, reference, params, Job())
    drawn = _others(images, reference, params)
    vit = load_model(model)
    logits = vit(scaled(reference, drawn))  # with all of resid_mid from another, the answer is the other's
    ce = torch.nn.functional.cross_entropy(logits.double(), torch.from_numpy(images["label"].values))
    assert found["ce_ablated"].item() == pytest.approx(ce.item(), rel=1e-4)


def test_no_image_is_resampled_from_itself_and_all_others_are(images: xr.Dataset) -> None:
    params = [Params(site="z", seed=seed) for seed in range(200)]
    shuffled = images.isel(image=[4, 2, 0, 8, 1, 3, 7, 5, 6])
    drawn = np.array([_others(images, shuffled, one) for one in params])
    ids = shuffled["image"].values[drawn]
    assert (ids != images["image"].values).all()
    assert all(len(set(column)) == 8 for column in ids.T)
    assert np.array_equal(_others(images, shuffled, params[5]), drawn[5])
    apart = images.assign_coords(image=[f"other-{number}" for number in range(9)])
    from_apart = np.array([_others(images, apart, one) for one in params])
    assert all(len(set(column)) == 9 for column in from_apart.T)


def test_memory_and_batches_do_not_change_results(
    model: Artifact, images: xr.Dataset, reference: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ablate(model, images, reference, site="z")
    monkeypatch.setattr("prisma_steps.analysis.cells.IMAGES_AT_ONCE", 2)
    small = ablate(model, images, reference, site="z", memory_mb=1)
    xr.testing.assert_allclose(small, whole, **CLOSE)
    xr.testing.assert_identical(ablate(model, images, reference, site="z", memory_mb=1), small)


def test_chosen_layers_and_tokens(model: Artifact, images: xr.Dataset) -> None:
    whole = ablate(model, images, tokens="all")
    listed = ablate(model, images, tokens=[0, 1, 2, 3, 4], layers=[1, 0])
    assert listed["layer"].values.tolist() == [1, 0]
    xr.testing.assert_allclose(listed["ce_ablated"].sel(layer=[0, 1]), whole["ce_ablated"], **CLOSE)
    cls = ablate(model, images, tokens="cls", layers="last")
    assert cls["layer"].values.tolist() == [1]
    assert not np.allclose(cls["ce_ablated"].sel(layer=1), whole["ce_ablated"].sel(layer=1))


def test_clips(tmp_path: Path) -> None:
    vit = ToyViT.initialised(ToyViTConfig(**SIZES, n_frames=4, tubelet_size=2), torch_generator(0, "weights"))
    model, clips = saved(vit, tmp_path), made(3, 2, frames=(4,))
    found = ablate(model, clips, site="z", ablations=["zero"], tokens=[8])
    pixels = scaled(clips)

    def hook(z: torch.Tensor) -> torch.Tensor:
        z = z.clone()
        z[:, 8, 1] = 0
        return z

    logits = load_model(model).run_with_hooks(pixels, {("z", 0): hook})
    ce = torch.nn.functional.cross_entropy(logits.double(), torch.from_numpy(clips["label"].values))
    assert found["ce_ablated"].sel(layer=0, head=1).item() == pytest.approx(ce.item(), rel=1e-4)


def test_a_model_in_memory(images: xr.Dataset) -> None:
    model = make("toy")
    two_channels = images.isel(channel=[0, 0])
    found = effects_of_ablations(model, two_channels, two_channels, Params(site="mlp_out"), Job())
    schema.check(found, schema.Ablation)


def test_progress_is_told_of_both_passes(model: Artifact, images: xr.Dataset, reference: xr.Dataset) -> None:
    told: list[tuple[int, int, str]] = []
    job = Job(report=lambda *given: told.append(given))
    ablate_activations(model, images, reference, Params(site="z", ablations=["mean"]), job)
    assert told == [(7, 7, "reference images"), (9, 9, "images")]


def test_a_killed_job_goes_on_and_leaves_the_same(
    model: Artifact, images: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prisma_steps.analysis.cells.IMAGES_AT_ONCE", 2)
    params = Params(site="z", ablations=["zero", "resample"])
    undisturbed = ablate_activations(model, images, images, params, Job())

    class Killed(Exception):
        pass

    def killing(done: int, _total: int, _note: str) -> None:
        if done == 6:
            raise Killed

    monkeypatch.setattr("prisma_steps.job.Checkpoint.due", lambda _: True)
    with pytest.raises(Killed):
        ablate_activations(model, images, images, params, Job(tmp_path, report=killing))
    told: list[int] = []
    job = Job(tmp_path, report=lambda done, _total, _note: told.append(done))
    found = ablate_activations(model, images, images, params, job)
    assert told == [6, 8, 9]  # four images were kept
    xr.testing.assert_identical(found, undisturbed)


@pytest.mark.parametrize("site", ["pattern", "embed", "ln_final", "logits"])
def test_sites_that_are_not_of_tokens_in_layers(site: str) -> None:
    with pytest.raises(ValidationError, match=f"'{site}' cannot be ablated: expected one of resid_pre"):
        Params(site=site)


@pytest.mark.parametrize("given", [{"layers": []}, {"tokens": [0, 0]}, {"ablations": ["zero", "zero"]}])
def test_lists_hold_each_once(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="name at least one, each once"):
        Params(site="z", **given)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"layers": [2]}, "no layer 2 at site 'attn_out': the model has layers 0 to 1"),
        ({"tokens": [5]}, "no token 5: the model has tokens 0 to 4"),
        ({"tokens": "register"}, "has no register token, only cls, patch"),
        ({"n_images": 10}, "n_images is 10, but there are only 9 images"),
        ({"n_reference": 1}, "the reference holds one image alone"),
    ],
)
def test_what_is_not_there(model: Artifact, images: xr.Dataset, params: dict[str, Any], message: str) -> None:
    with pytest.raises(StepError, match=f"^ablate_activations: .*{message}"):
        ablate(model, images, **params)


def test_a_site_that_the_model_lacks(tmp_path: Path, images: xr.Dataset) -> None:
    bare = ToyViT.initialised(ToyViTConfig(**SIZES, attention_only=True), torch_generator(0, "weights"))
    with pytest.raises(StepError, match="the model has no site 'mlp_out'"):
        ablate(saved(bare, tmp_path), images, site="mlp_out")


def test_a_model_without_a_head_and_images_without_classes(
    model: Artifact, images: xr.Dataset, tmp_path: Path
) -> None:
    with pytest.raises(StepError, match="the images have no classes"):
        ablate(model, images.drop_vars("label"))
    with pytest.raises(
        StepError, match="3 classes .a, b, c., the model tells 3 apart .square, ellipse, heart"
    ):
        ablate(model, images.assign_coords(class_name=("class", ["a", "b", "c"])))
    with pytest.raises(StepError, match="the images are of 8 classes .* the model tells 3 apart"):
        ablate(model, images.assign_coords(label=images["label"] * 0 + 7))
    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=8,
        patch_size=4,
        num_channels=1,
    )
    with pytest.raises(StepError, match="the model has no classes, .* Put a train_probe node"):
        ablate(saved(ViTModel(config, add_pooling_layer=False), tmp_path), images)
