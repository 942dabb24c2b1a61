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
from prisma_steps.fingerprint import parameters_in_key
from prisma_steps.job import Job
from prisma_steps.models.loading import load_model
from prisma_steps.models.splicing import SpliceError
from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.sae.autoencoder import Shape
from prisma_steps.sae.placed import as_splice
from prisma_steps.seeding import torch_generator
from prisma_steps.step import Artifact, StepError
from prisma_steps.steps.steer_latents import Params, effects_of_steering, steer_latents
from tests.artifacts import saved, scaled
from tests.sae.dictionaries import labelled
from tests.sae.published import dictionary

CLASS_NAMES = ["square", "ellipse", "heart"]
CONFIG = ToyViTConfig(
    n_layers=2, d_model=12, n_heads=2, d_mlp=24, patch_size=4, image_size=8, n_channels=1, n_classes=3
)
CELLS = ("latent", "strength", "image", "class")
N_IMAGES = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    vit = ToyViT.initialised(CONFIG, torch_generator(0, "weights"))
    names = xr.Dataset(coords={"class_name": ("class", CLASS_NAMES)})
    return saved(vit, tmp_path_factory.mktemp("model"), names)


@pytest.fixture(scope="module")
def images() -> xr.Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (N_IMAGES, 1, 8, 8), "uint8")
    return xr.Dataset(
        {"pixels": (("image", "channel", "row", "column"), pixels)},
        coords={"image": [f"image-{number}" for number in range(N_IMAGES)]},
    )


def sae_of(shape: Shape | None = None, **place: Any) -> xr.Dataset:
    made = dictionary("relu", shape or Shape(12, 30, normalise="expected_norm"), norm_factor=1.4)
    return labelled(made, **{"layer": 0, **place})


def steer(model: Artifact, images: xr.Dataset, sae: xr.Dataset | None = None, **params: Any) -> xr.Dataset:
    given = {"strengths": [0.0, 1.0, -0.5], **params}
    return steer_latents(sae_of() if sae is None else sae, model, images, Params(**given), Job())


def test_the_artifact_is_labelled(model: Artifact, images: xr.Dataset) -> None:
    found = steer(model, images, n_latents=4)
    schema.check(found, schema.Steering)
    assert dict(found["logit"].sizes) == {"latent": 4, "strength": 3, "image": 5, "class": 3}
    assert found["class_name"].values.tolist() == CLASS_NAMES
    assert found["image"].values.tolist() == images["image"].values.tolist()
    assert all({"long_name", "units"} <= set(variable.attrs) for variable in found.variables.values())
    assert found.attrs == {"mode": "add", "tokens": "all"}
    assert found["strength"].attrs["units"] == "highest activation of the latent"
    place = {name: found[name].item() for name in ("site", "layer", "architecture")}
    assert place == {"site": "resid_post", "layer": 0, "architecture": "relu"}
    np.testing.assert_allclose(found["probability"].sum("class"), 1, atol=1e-6)
    np.testing.assert_allclose(found["clean_probability"].sum("class"), 1, atol=1e-6)
    for kind in ("logit", "probability"):
        change = (found[kind].astype(float) - found[f"clean_{kind}"]).mean("image")
        xr.testing.assert_allclose(
            found[f"mean_{kind}_change"], change.transpose("latent", "strength", "class")
        )


@pytest.mark.parametrize("tokens", ["all", "cls"])
@pytest.mark.parametrize("units", ["maximum", "activation"])
@torch.no_grad()
def test_a_cell_is_the_edited_run_that_its_labels_tell(
    model: Artifact, images: xr.Dataset, units: str, tokens: str
) -> None:
    sae = sae_of()
    found = steer(model, images, sae, units=units, tokens=tokens, latents=[10, 1], mode="clamp")
    vit, splice, pixels = load_model(model), as_splice(sae), scaled(images)
    chosen = slice(0, 1) if tokens == "cls" else slice(None)
    _, plain = vit.run_with_saes(pixels, {splice.writes: splice})
    for latent in (10, 1):
        highest = plain[splice.writes][:, chosen, latent].max().item()
        assert found["max_activation"].sel(latent=latent).item() == pytest.approx(highest, rel=1e-5)
        for strength in (1.0, -0.5):
            amount = strength * (highest if units == "maximum" else 1.0)

            def edit(latents: torch.Tensor, at: int = latent, amount: float = amount) -> torch.Tensor:
                latents = latents.clone()
                latents[:, chosen, at] = amount
                return latents

            logits, _ = vit.run_with_saes(
                pixels, {splice.writes: splice}, error_term=True, edits={splice.writes: edit}
            )
            cell = found.sel(latent=latent, strength=strength)
            # float32 runs of batches of other sizes, at logits of about 1
            np.testing.assert_allclose(cell["logit"], logits, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(cell["probability"], logits.softmax(-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["clean_logit"], vit(pixels), rtol=1e-4, atol=1e-5)


def test_strengths_that_do_nothing(model: Artifact, images: xr.Dataset) -> None:
    for mode, strength in (("add", 0.0), ("multiply", 1.0)):
        found = steer(model, images, mode=mode, strengths=[strength, 2.0])
        still, moved = (found["mean_logit_change"].sel(strength=at) for at in (strength, 2.0))
        np.testing.assert_allclose(still, 0, atol=1e-5)
        assert abs(moved).max() > 1e-3
    assert found["strength"].attrs["units"] == "factor"


def test_the_most_active_latents(model: Artifact, images: xr.Dataset) -> None:
    sae = sae_of()
    found = steer(model, images, sae, n_latents=5, tokens="patch")
    vit, splice = load_model(model), as_splice(sae)
    x = vit.read(scaled(images), ["resid_post"], [0])["resid_post", 0][:, 1:]
    mean = splice.dictionary.encode(x).mean((0, 1))
    assert found["latent"].values.tolist() == mean.topk(5).indices.tolist()
    np.testing.assert_allclose(found["mean_activation_over_tokens"], mean.topk(5).values, rtol=1e-4)
    assert "attribution" not in found


def test_latents_of_the_largest_effect_on_a_class(model: Artifact, images: xr.Dataset) -> None:
    """Attribution is the effect to first order: of a small change it tells the order and the size."""
    found = steer(
        model,
        images,
        latents="largest_effect",
        of_class="heart",
        n_latents=30 - 12,
        mode="multiply",
        strengths=[1.01, 0.99],
    )
    attribution = found["attribution"].values
    assert (np.diff(abs(attribution)) <= 0).all() and abs(attribution[0]) > 0
    heart = found["logit"].isel({"class": 2}).astype(float)
    lost = (heart.sel(strength=1.01) - heart.sel(strength=0.99)).mean("image") / 0.02
    # Logits are float32, 1e-7 of about 1, divided by 0.02; the third derivative adds 1e-4 of itself.
    np.testing.assert_allclose(attribution, lost, rtol=0.01, atol=1e-3)
    by_number = steer(model, images, latents="largest_effect", of_class=2, n_latents=18)
    assert by_number["latent"].values.tolist() == found["latent"].values.tolist()


def test_chosen_classes_by_name_or_number(model: Artifact, images: xr.Dataset) -> None:
    whole = steer(model, images)
    part = steer(model, images, classes=["heart", 0])
    assert part["class_name"].values.tolist() == ["heart", "square"]
    for name in ("logit", "probability", "clean_probability", "mean_logit_change"):
        np.testing.assert_array_equal(part[name], whole[name].isel({"class": [2, 0]}))


def test_memory_does_not_change_results(
    model: Artifact, images: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = steer(model, images)
    monkeypatch.setattr("prisma_steps.analysis.cells.IMAGES_AT_ONCE", 2)
    xr.testing.assert_allclose(steer(model, images, memory_mb=1), whole, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_transcoder(model: Artifact, images: xr.Dataset) -> None:
    shape = Shape(12, 30, d_target=12, skip=True, subtract_b_dec=False)
    sae = sae_of(shape, site="ln2_out", target_site="mlp_out", layer=1)
    found = steer(model, images, sae, latents=[4], units="activation", strengths=[2.0])
    row = torch.from_numpy(sae["W_dec"].values[4])
    logits = load_model(model).run_with_hooks(scaled(images), {("mlp_out", 1): lambda value: value + 2 * row})
    np.testing.assert_allclose(found["logit"][0, 0], logits, rtol=1e-4, atol=1e-5)


def test_a_model_and_a_dictionary_in_memory(model: Artifact, images: xr.Dataset) -> None:
    found = effects_of_steering(
        load_model(model), as_splice(sae_of()), images, Params(strengths=[1.0]), Job()
    )
    schema.check(found, schema.Steering)


def test_what_has_no_effect_is_not_in_the_key() -> None:
    listed = Params(strengths=[1.0], latents=[1])
    same = Params(strengths=[1.0], latents=[1], n_latents=3, of_class="a", memory_mb=3)
    assert parameters_in_key(listed) == parameters_in_key(same)
    factor = [Params(strengths=[1.0], mode="multiply", units=units) for units in ("maximum", "activation")]
    assert parameters_in_key(factor[0]) == parameters_in_key(factor[1])
    added = [Params(strengths=[1.0], units=units) for units in ("maximum", "activation")]
    assert parameters_in_key(added[0]) != parameters_in_key(added[1])


@pytest.mark.parametrize("given", [{"strengths": []}, {"latents": [1, 1]}, {"classes": []}])
def test_lists_hold_each_once(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="name at least one, each once"):
        Params(**{"strengths": [1.0], **given})


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"latents": [2, 30]}, "steer_latents: no latent 30: the dictionary has latents 0 to 29"),
        ({"classes": ["hart"]}, "no class 'hart'. Did you mean 'heart'.* classes are square, ellipse, heart"),
        ({"classes": [3]}, "no class 3: the model has classes 0 to 2"),
        ({"latents": "largest_effect"}, "largest_effect needs of_class"),
        ({"latents": "largest_effect", "of_class": "disc"}, "no class 'disc'"),
        ({"n_images": 6}, "n_images is 6, but there are only 5 images"),
        ({"tokens": "register"}, "tokens is 'register'"),
        ({"n_latents": 31}, "n_latents is 31, but only .* latents fire"),
    ],
)
def test_what_is_not_there(model: Artifact, images: xr.Dataset, params: dict[str, Any], message: str) -> None:
    with pytest.raises(StepError, match=message):
        steer(model, images, **params)


def test_dictionaries_that_do_not_fit(model: Artifact, images: xr.Dataset) -> None:
    with pytest.raises(SpliceError, match="is 8 → 8 wide, and resid_post of layer 0 of this model 12"):
        steer(model, images, sae_of(Shape(8, 30)))
    with pytest.raises(StepError, match="does not belong to this model: no layer 5"):
        steer(model, images, sae_of(layer=5))
    crosscoder = labelled(dictionary("relu", Shape(12, 30, n_layers=2)), layers=[0, 1])
    with pytest.raises(SpliceError, match="is a crosscoder"):
        steer(model, images, crosscoder)
    with pytest.raises(StepError, match="tokens is 'cls', and the dictionary is of patch tokens"):
        steer(model, images, sae_of(tokens="patch"), tokens="cls")


def test_a_latent_that_never_fires_has_no_maximum(model: Artifact, images: xr.Dataset) -> None:
    sae = sae_of()
    sae["b_enc"][5] = -1e6
    with pytest.raises(StepError, match="latent 5 never fires on these images .* Set units: activation"):
        steer(model, images, sae, latents=[3, 5])
    assert steer(model, images, sae, latents=[3, 5], units="activation")["max_activation"][1] == 0


def test_a_model_without_a_head(images: xr.Dataset, tmp_path: Path) -> None:
    config = ViTConfig(
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=8,
        patch_size=4,
        num_channels=1,
    )
    bare = saved(ViTModel(config, add_pooling_layer=False), tmp_path)
    with pytest.raises(StepError, match="steer_latents: the model has no classes"):
        steer(bare, images)
