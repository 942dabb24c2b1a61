"""ViT-Prisma's formulas are computed of what is written, and what it writes is read as they mean it.

ViT-Prisma with sparse autoencoders is on no package index; its formulas are written out here instead.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from prisma_steps.sae.autoencoder import Autoencoder, Shape
from prisma_steps.sae.formats.files import FormatError
from prisma_steps.sae.formats.folders import read_folder, write_folder
from prisma_steps.sae.formats.published import Published
from tests.sae.published import activations, dictionary

# The same products in another order, in float32, of numbers around 1 to 10: 24 summands of 6e-8 each.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}

PLACE = {"site": "resid_post", "layer": 3, "tokens": "cls"}
TO_MLP = {"site": "ln2_out", "layer": 3, "target_site": "mlp_out", "tokens": "all"}
TRANSCODER = Shape(8, 24, d_target=6, subtract_b_dec=False)
SKIPPING = Shape(8, 24, d_target=8, skip=True, subtract_b_dec=False)


def written(autoencoder: Autoencoder, folder: Path) -> Path:
    place = PLACE if autoencoder.shape.kind == "autoencoder" else TO_MLP
    write_folder(Published(autoencoder, place, {"model_name": "vit"}), folder, "vit_prisma")
    return folder


def theirs(folder: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and reconstructions by the formulas of its sae.py and transcoder.py, in float64."""
    config = json.loads((folder / "config.json").read_text())
    weights = {name: value.double() for name, value in torch.load(folder / "weights.pt").items()}
    transcodes, x = config.get("is_transcoder", False), x.double()
    inner, back = normalised(x, config["normalize_activations"])
    centred = inner - weights["b_dec"]
    if config["architecture"] == "gated":
        opened = centred @ weights["W_enc"] + weights["b_gate"] > 0
        scaled = centred @ (weights["W_enc"] * weights["r_mag"].exp()) + weights["b_mag"]
        latents = opened * scaled.relu()
    else:
        latents = (centred @ weights["W_enc"] + weights["b_enc"]).relu()
    if config["activation_fn_str"] == "topk":
        largest = latents.topk(config["activation_fn_kwargs"]["k"], dim=-1)
        latents = torch.zeros_like(latents).scatter(-1, largest.indices, largest.values)
    made = latents @ weights["W_dec"] + weights["b_dec_out" if transcodes else "b_dec"]
    if config.get("transcoder_with_skip_connection"):
        made = made + x @ weights["W_skip"].mT
    return latents.float(), back(made).float()


def normalised(x: torch.Tensor, how: str) -> tuple[torch.Tensor, Any]:
    if how == "layer_norm":
        mean, deviation = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return (x - mean) / (deviation + 1e-5), lambda made: made * deviation + mean
    if how == "constant_norm_rescale":
        factor = 8**0.5 / x.norm(dim=-1, keepdim=True)
        return x * factor, lambda made: made / factor
    return x, lambda made: made


def assert_same(ours: Autoencoder, folder: Path, x: torch.Tensor) -> None:
    for mine, other in zip(ours(x), theirs(folder, x), strict=True):
        torch.testing.assert_close(mine, other, **TOLERANCE)
    assert 0 < (ours(x)[0] > 0).float().mean() < 1


@pytest.mark.parametrize("subtract_b_dec", [True, False])
@pytest.mark.parametrize("normalise", ["none", "expected_norm", "layer_norm", "token_norm"])
@pytest.mark.parametrize("name", ["relu", "topk", "gated"])
def test_its_formulas_compute_the_same_of_what_is_written_and_read_again(
    tmp_path, name, normalise, subtract_b_dec
):
    shape = Shape(8, 24, normalise=normalise, subtract_b_dec=subtract_b_dec)
    ours = dictionary(name, shape, 2.5 if normalise == "expected_norm" else 1.0)
    written(ours, tmp_path)
    x = activations(8, 6, 5)
    assert_same(ours, tmp_path, x)
    found = read_folder(tmp_path)
    assert_same(found.autoencoder, tmp_path, x)
    assert found.place == PLACE and found.facts == {"model_name": "vit"}
    if normalise == "none" and subtract_b_dec:
        state = found.autoencoder.state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in ours.state_dict().items())
        assert getattr(found.autoencoder, ours.settings[0]) == getattr(ours, ours.settings[0])


@pytest.mark.parametrize("shape", [TRANSCODER, SKIPPING], ids=["plain", "skip"])
@pytest.mark.parametrize("name", ["relu", "topk"])
def test_transcoders_go_out_and_in(tmp_path, name, shape):
    ours = dictionary(name, shape)
    written(ours, tmp_path)
    x = activations(8, 6, 5)
    assert_same(ours, tmp_path, x)
    found = read_folder(tmp_path)
    assert found.place == TO_MLP and found.autoencoder.shape == Shape(**{**vars(shape), "unit_norm": False})
    assert_same(found.autoencoder, tmp_path, x)


def test_a_transcoder_that_takes_b_dec_off_its_input_is_read(tmp_path):
    written(dictionary("relu", SKIPPING), tmp_path)
    weights = torch.load(tmp_path / "weights.pt")
    weights["b_dec"] = torch.linspace(-1, 1, 8)
    torch.save(weights, tmp_path / "weights.pt")
    assert_same(read_folder(tmp_path).autoencoder, tmp_path, activations(8, 6, 5))


@pytest.mark.parametrize(
    ("name", "shape", "place", "message"),
    [
        ("jumprelu", Shape(8, 24), PLACE, "ViT-Prisma has no jumprelu dictionaries: write it as sae_lens"),
        ("relu", Shape(8, 20), PLACE, "a multiple of d_in = 8 alone, not 20"),
        ("relu", Shape(8, 24, n_layers=2), {"tokens": "all"}, "no crosscoders"),
        ("gated", TRANSCODER, TO_MLP, "no gated transcoders"),
        ("relu", Shape(8, 24, d_target=6, normalise="layer_norm"), TO_MLP, "normalise = layer_norm"),
        ("relu", Shape(8, 24, d_target=6, skip=True), TO_MLP, "as many outputs as inputs"),
        ("relu", Shape(8, 24), {"site": "ln_final", "tokens": "all"}, "not of ln_final"),
        ("relu", Shape(8, 24), {**PLACE, "tokens": "register"}, "no dictionaries of register tokens"),
    ],
)
def test_what_vit_prisma_cannot_compute_is_refused(tmp_path, name, shape, place, message):
    with pytest.raises(FormatError, match=message):
        write_folder(Published(dictionary(name, shape), place), tmp_path, "vit_prisma")
    assert not list(tmp_path.iterdir())


# --- what is wrong is named


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": "jumprelu"},
            "architecture is 'jumprelu', which is not known here: known are standard",
        ),
        ({"activation_fn_str": "tanh-relu"}, "'tanh-relu', which is not known here: known are relu, topk"),
        (
            {"is_transcoder": True, "d_out": 8, "normalize_activations": "layer_norm"},
            "the scale of its input",
        ),
        ({"is_transcoder": True, "d_out": 8}, r"weights\.pt lacks the tensor b_dec_out \[8\]"),
        ({"hook_point_head_index": 1}, "head 1 alone"),
        ({"d_sae": 32}, r"weights\.pt: W_enc has shape \[8, 24\], expected \[8, 32\]"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2, "postact_fn": 1}}, "more than k"),
    ],
)
def test_settings_that_cannot_be_represented_are_refused(tmp_path, changes, message):
    file = written(dictionary("relu"), tmp_path) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(FormatError, match=message):
        read_folder(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_truncated_weights_are_named(tmp_path, share):
    file = written(dictionary("relu"), tmp_path) / "weights.pt"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(FormatError, match=r"weights\.pt cannot be read .* truncated or damaged"):
        read_folder(tmp_path)


class Config:
    """Stands for the object that old files hold; unpickled, it leaves a trace."""

    def __init__(self, settings: dict[str, Any], trace: Path) -> None:
        vars(self).update(settings)
        self._trace = trace

    def __setstate__(self, state: dict[str, Any]) -> None:
        state.pop("_trace").touch()
        vars(self).update(state)


def test_a_file_that_can_run_code_is_refused_and_the_way_out_works(tmp_path):
    """An old file, with its settings as an object. The lines of the message, run as they are, convert it."""
    ours = dictionary("relu")
    written(ours, tmp_path)
    weights, settings = (
        torch.load(tmp_path / "weights.pt"),
        json.loads((tmp_path / "config.json").read_text()),
    )
    old = {"cfg": Config(settings, tmp_path / "code ran"), "state_dict": weights}
    torch.save(old, tmp_path / "weights.pt")
    with pytest.raises(FormatError, match="holds more than tensors: reading it could run any code") as told:
        read_folder(tmp_path)
    assert not (tmp_path / "code ran").exists()

    (tmp_path / "config.json").unlink()
    lines = [line.strip() for line in str(told.value).splitlines() if line.startswith("    ")]
    root = Path(__file__).parents[3]
    setup = f"import sys; sys.path.insert(0, {str(root)!r}); import {__name__}"
    subprocess.run([sys.executable, "-c", "\n".join([setup, *lines])], cwd=tmp_path, check=True)
    (tmp_path / "weights.pt").unlink()
    found = read_folder(tmp_path)
    assert found.place == PLACE
    assert torch.equal(found.autoencoder.W_enc, ours.W_enc)


def test_safetensors_are_read_where_they_lie_beside_the_settings(tmp_path):
    ours = dictionary("topk")
    written(ours, tmp_path)
    save_file(torch.load(tmp_path / "weights.pt"), tmp_path / "weights.safetensors")
    (tmp_path / "weights.pt").write_bytes(b"nothing")
    x = activations(8, 9)
    assert torch.equal(read_folder(tmp_path).autoencoder(x)[1], ours(x)[1])


def test_weights_may_have_another_name_if_they_are_alone(tmp_path):
    written(dictionary("relu"), tmp_path)
    (tmp_path / "weights.pt").rename(tmp_path / "n_images_2600058.pt")
    assert read_folder(tmp_path).place == PLACE
    (tmp_path / "n_images_1.pt").touch()
    with pytest.raises(FormatError, match=r"weights\.pt cannot be read"):
        read_folder(tmp_path)
