"""SAELens's own classes compute the same of what is written here, and what they write computes the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prisma_steps.sae.autoencoder import Autoencoder, Shape
from prisma_steps.sae.formats.files import FormatError
from prisma_steps.sae.formats.folders import read_folder, write_folder
from prisma_steps.sae.formats.published import Published
from tests import peers
from tests.sae.dictionaries import SETTINGS, K
from tests.sae.published import activations, dictionary

# The same products in another order, in float32, of numbers around 1 to 10: 24 summands of 6e-8 each.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}

PLACE = {"site": "resid_post", "layer": 3, "tokens": "patch"}
TRANSCODER = Shape(8, 24, d_target=6, subtract_b_dec=False)
SKIPPING = Shape(8, 24, d_target=6, skip=True, subtract_b_dec=False)


@pytest.fixture(scope="session")
def saes() -> Any:
    return peers.sae_lens()


def written(autoencoder: Autoencoder, folder: Path) -> Path:
    write_folder(Published(autoencoder, PLACE), folder, "sae_lens")
    return folder


def assert_same(ours: Autoencoder, theirs: Any, x: torch.Tensor) -> None:
    """Latents, the same ones of them, and reconstructions."""
    latents, made = ours(x)
    torch.testing.assert_close(theirs.encode(x), latents, **TOLERANCE)
    torch.testing.assert_close(theirs(x), made, **TOLERANCE)
    assert 0 < (latents > 0).float().mean() < 1


# --- out


@pytest.mark.parametrize("subtract_b_dec", [True, False])
@pytest.mark.parametrize("normalise", ["none", "expected_norm", "layer_norm", "token_norm"])
@pytest.mark.parametrize("name", SETTINGS)
def test_sae_lens_computes_the_same_of_what_is_written(saes, tmp_path, name, normalise, subtract_b_dec):
    factor = 2.5 if normalise == "expected_norm" else 1.0
    shape = Shape(8, 24, normalise=normalise, subtract_b_dec=subtract_b_dec)
    ours = dictionary(name, shape, factor)
    theirs = saes.SAE.load_from_disk(written(ours, tmp_path))
    assert theirs.cfg.metadata.hook_name == "blocks.3.hook_resid_post"
    assert_same(ours, theirs, activations(8, 6, 5))


@pytest.mark.parametrize("normalise", ["none", "expected_norm", "layer_norm", "token_norm"])
@pytest.mark.parametrize("shape", [TRANSCODER, SKIPPING], ids=["plain", "skip"])
@pytest.mark.parametrize("name", ["relu", "jumprelu", "batch_topk", "matryoshka"])
def test_sae_lens_computes_the_same_of_transcoders(saes, tmp_path, name, shape, normalise):
    ours = dictionary(name, Shape(8, 24, d_target=6, skip=shape.skip, normalise=normalise), 2.5, 0.4)
    if normalise in ("layer_norm", "token_norm"):
        ours.normalisation.norm_factor.fill_(1)
        if shape.skip:
            with pytest.raises(FormatError, match="skip inputs that are not normalised"):
                written(ours, tmp_path)
            return
    theirs = saes.SAE.load_from_disk(written(ours, tmp_path))
    assert_same(ours, theirs, activations(8, 6, 5))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("topk", TRANSCODER, "SAELens has no topk transcoder"),
        ("gated", TRANSCODER, "SAELens has no gated transcoder"),
        ("relu", Shape(8, 24, n_layers=2), "SAELens has no relu crosscoder"),
    ],
)
def test_what_sae_lens_has_no_class_for_is_refused(tmp_path, name, shape, message):
    with pytest.raises(FormatError, match=message):
        written(dictionary(name, shape), tmp_path)
    assert not list(tmp_path.iterdir())


# --- and back


@pytest.mark.parametrize("shape", [Shape(8, 24), TRANSCODER, SKIPPING], ids=lambda shape: shape.kind)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_round_trip_changes_no_number(tmp_path, name, shape):
    """Without a norm factor there is nothing to fold: weights come back bit for bit."""
    if shape.kind == "transcoder" and name in ("topk", "gated"):
        return
    ours = dictionary(name, shape)
    found = read_folder(written(ours, tmp_path))
    assert type(found.autoencoder) is type(ours) and found.autoencoder.shape == shape
    assert found.place == PLACE and found.facts == {}
    for setting in ours.settings:
        assert getattr(found.autoencoder, setting) == getattr(ours, setting)
    state = found.autoencoder.state_dict()
    for key, tensor in ours.state_dict().items():
        # exp and log of a threshold round.
        torch.testing.assert_close(state[key], tensor, rtol=0, atol=3e-7 if key == "log_threshold" else 0)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_round_trip_folds_the_factor_and_leaves_outputs_as_they_are(tmp_path, name):
    ours = dictionary(name, Shape(8, 24, normalise="expected_norm"), 2.5)
    found = read_folder(written(ours, tmp_path)).autoencoder
    assert found.shape.normalise == "none" and found.normalisation.norm_factor.item() == 1
    x = activations(8, 40)
    for before, after in zip(ours(x), found(x), strict=True):
        torch.testing.assert_close(after, before, **TOLERANCE)
    torch.testing.assert_close(found.b_dec, ours.b_dec / 2.5)


def test_the_threshold_of_a_batch_is_written_for_every_latent(tmp_path):
    written(dictionary("batch_topk", Shape(8, 24, normalise="expected_norm"), 2.5), tmp_path)
    weights = load_file(tmp_path / "sae_weights.safetensors")
    assert torch.equal(weights["threshold"], torch.full((24,), 0.4))


# --- in


CLASSES = {
    "StandardSAE": "relu",
    "GatedSAE": "gated",
    "TopKSAE": "topk",
    "JumpReLUSAE": "jumprelu",
    "Transcoder": "relu",
    "SkipTranscoder": "relu",
    "JumpReLUTranscoder": "jumprelu",
    "JumpReLUSkipTranscoder": "jumprelu",
}


def theirs_of(saes: Any, name: str, **settings: Any) -> Any:
    """One of SAELens's dictionaries with random weights; thresholds below, at and above 0."""
    if "Transcoder" in name:
        settings = {"d_out": 6, "apply_b_dec_to_input": False, **settings}
    config = getattr(saes, f"{name}Config")(d_in=8, d_sae=24, **settings)
    config.metadata.hook_name = "blocks.2.ln2.hook_normalized"
    config.metadata.hook_name_out = "blocks.2.hook_mlp_out" if "Transcoder" in name else None
    config.metadata.model_name = "vit"
    made = getattr(saes, name)(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        if hasattr(made, "threshold"):
            made.threshold[:2] = torch.tensor([0.0, -0.5])
    return made


@pytest.mark.parametrize("normalise", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("name", CLASSES)
def test_what_sae_lens_writes_computes_the_same_here(saes, tmp_path, name, normalise):
    theirs = theirs_of(saes, name, normalize_activations=normalise, **({"k": 5} if name == "TopKSAE" else {}))
    theirs.save_model(tmp_path)
    if "Skip" in name and normalise != "none":
        with pytest.raises(FormatError, match="skip of this transcoder is of inputs that are not normalised"):
            read_folder(tmp_path)
        return
    found = read_folder(tmp_path)
    assert found.autoencoder.architecture == CLASSES[name]
    assert_same(found.autoencoder, theirs, activations(8, 6, 5))
    assert found.facts["model_name"] == "vit"
    target = {"target_site": "mlp_out"} if "Transcoder" in name else {}
    assert found.place == {"site": "ln2_out", "layer": 2, **target}


def test_latents_weighed_by_the_norm_of_their_rows_are_read(saes, tmp_path):
    theirs = theirs_of(saes, "TopKSAE", k=5, rescale_acts_by_decoder_norm=True)
    theirs.save_model(tmp_path)
    found = read_folder(tmp_path).autoencoder
    assert_same(found, theirs, activations(8, 30))
    torch.testing.assert_close(found.W_dec.norm(dim=1), torch.ones(24))


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("name", ["BatchTopK", "MatryoshkaBatchTopK"])
def test_dictionaries_in_training_are_read_with_their_factor(saes, tmp_path, name, rescale):
    """What is read from a checkpoint is what SAELens exports at its end, when it folds the factor."""
    nested = {"matryoshka_widths": [6, 12, 24]} if name.startswith("M") else {}
    config = getattr(saes, f"{name}TrainingSAEConfig")(
        d_in=8, d_sae=24, k=4, rescale_acts_by_decoder_norm=rescale, **nested,
        normalize_activations="expected_average_only_in",
    )  # fmt: skip
    theirs = getattr(saes, f"{name}TrainingSAE")(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    theirs.topk_threshold = torch.tensor(0.7, dtype=torch.float64)
    theirs.save_model(tmp_path)
    with pytest.raises(FormatError, match="the factor is not known"):
        read_folder(tmp_path)
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": 0.5}')
    ours = read_folder(tmp_path).autoencoder
    assert ours.architecture == ("matryoshka" if nested else "batch_topk") and ours.k == 4
    assert getattr(ours, "ends", [6, 12, 24]) == [6, 12, 24]
    theirs.fold_activation_norm_scaling_factor(0.5)
    theirs.save_inference_model(tmp_path / "exported")
    exported = saes.SAE.load_from_disk(tmp_path / "exported")
    x = activations(8, 40)
    torch.testing.assert_close(exported(x), ours(x)[1], **TOLERANCE)
    # SAELens weighs latents by rows that the factor has made longer.
    scale = 2.0 if rescale else 1.0
    torch.testing.assert_close(exported.encode(x), ours(x)[0] * scale, **TOLERANCE)


def test_an_old_topk_dictionary_is_read(tmp_path):
    """Before version 6: everything in one object, TopK as a function, hook_point, yes and no."""
    ours = dictionary("topk")
    written(ours, tmp_path)
    old = {
        "d_in": 8, "d_sae": 24, "dtype": "torch.float32", "activation_fn": "topk",
        "activation_fn_kwargs": {"k": K}, "hook_point": "blocks.7.hook_mlp_out",
        "normalize_activations": False, "hook_point_head_index": None, "model_name": "old",
    }  # fmt: skip
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    found = read_folder(tmp_path)
    assert found.place == {"site": "mlp_out", "layer": 7}
    assert torch.equal(found.autoencoder(activations(8, 9))[1], ours(activations(8, 9))[1])


def test_a_coefficient_that_is_not_recorded_is_not_made_up(saes, tmp_path):
    theirs_of(saes, "StandardSAE").save_model(tmp_path)
    assert read_folder(tmp_path).facts["sparsity_setting"] == "l1_coefficient not recorded"


# --- what is wrong is named


def spoil(folder: Path, **changes: Any) -> None:
    """Change settings in ``cfg.json``."""
    file = folder / "cfg.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": "temporal"},
            "architecture is 'temporal', which is not known here: known are standard",
        ),
        ({"architecture": None}, "architecture is None"),
        ({"d_sae": 25}, r"sae_weights\.safetensors: W_enc has shape \[8, 24\], expected \[8, 25\]"),
        ({"d_sae": 0}, "d_sae is 0, expected a whole number above 0"),
        ({"d_in": "8"}, "d_in is '8'"),
        ({"normalize_activations": "covariance_whitening"}, "'covariance_whitening', which is not known"),
        ({"normalize_activations": True}, "the factor is not known"),
        ({"architecture": "jumprelu"}, r"lacks the tensor threshold \[24\]; it holds W_dec"),
        ({"architecture": "topk", "k": 2.5}, "k is 2.5, expected a whole number"),
        ({"architecture": "topk", "k": 25}, "k = 25 is more than the dictionary's 24 latents"),
        ({"activation_fn": "tanh-relu"}, "activation_fn is 'tanh-relu'"),
        ({"finetuning_scaling_factor": True}, "latents are scaled after training"),
        ({"metadata": {"hook_head_index": 2}}, "head 2 alone"),
        ({"architecture": "transcoder", "d_out": 8, "apply_b_dec_to_input": True}, "belongs to another site"),
    ],
)
def test_settings_that_cannot_be_represented_are_refused(tmp_path, changes, message):
    written(dictionary("relu"), tmp_path)
    spoil(tmp_path, **changes)
    with pytest.raises(FormatError, match=message):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("b_enc"), r"lacks the tensor b_enc \[24\]"),
        (lambda weights: weights.update(b_in=torch.ones(8)), "holds b_in, which"),
        (lambda weights: weights["W_dec"][3].fill_(torch.nan), "W_dec holds NaN or infinity"),
        (lambda weights: weights.update(scaling_factor=torch.full((24,), 2.0)), "scaling_factor is not 1"),
    ],
)
def test_tensors_that_are_wrong_are_named(tmp_path, change, message):
    written(dictionary("relu"), tmp_path)
    weights = load_file(tmp_path / "sae_weights.safetensors")
    change(weights)
    save_file(weights, tmp_path / "sae_weights.safetensors")
    with pytest.raises(FormatError, match=rf"sae_weights\.safetensors.*{message}"):
        read_folder(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
@pytest.mark.parametrize("name", ["sae_weights.safetensors", "cfg.json"])
def test_truncated_files_are_named(tmp_path, name, share):
    file = written(dictionary("relu"), tmp_path) / name
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(FormatError, match=f"{name} cannot be read"):
        read_folder(tmp_path)


def test_a_folder_of_something_else_says_what_it_holds(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FormatError, match=r"it holds model\.safetensors, expected cfg\.json with"):
        read_folder(tmp_path)
    with pytest.raises(FormatError, match="there is no folder 'nowhere'"):
        read_folder(tmp_path / "nowhere")


def test_a_dictionary_is_not_written_over(tmp_path):
    written(dictionary("relu"), tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(FormatError, match=r"cfg\.json and sae_weights\.safetensors already"):
        written(dictionary("topk"), tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(FormatError, match="'onnx', expected one of sae_lens, vit_prisma"):
        write_folder(Published(dictionary("relu"), PLACE), tmp_path, "onnx")
