from __future__ import annotations

import json

import pytest
import torch
import xarray as xr
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

from prisma_steps.models.loading import load_model, model_files
from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.step import Artifact, StepError
from tests.artifacts import saved

CONFIG = ToyViTConfig(
    n_layers=2, d_model=8, n_heads=2, d_mlp=16, patch_size=4, image_size=8, n_channels=1, n_classes=3
)


@pytest.fixture
def model() -> ToyViT:
    return ToyViT.initialised(CONFIG, torch.Generator().manual_seed(0))


@pytest.fixture
def artifact(model, tmp_path) -> Artifact:
    return saved(model, tmp_path)


def test_a_saved_model_is_loaded_to_the_bit(model, artifact):
    loaded, pixels = load_model(artifact), torch.rand(2, 1, 8, 8)
    assert torch.equal(loaded(pixels), model(pixels).logits)
    assert loaded.config.to_diff_dict() == {
        **CONFIG.to_diff_dict(),
        "architectures": ["ToyViT"],
        "dtype": "float32",
    }
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())


def test_the_same_model_gives_the_same_bytes(model, artifact, tmp_path):
    for name, write in model_files(model).items():
        write(tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == (artifact.folder / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["NoSuchModel"]}, "names the class 'NoSuchModel'"),
        ({"architectures": None}, "names the class None"),
        ({"d_model": 16}, "model.safetensors does not hold the model .* of another shape"),
        ({"n_layers": 3}, "model.safetensors does not hold the model .* weights of ToyViT are missing"),
    ],
)
def test_a_configuration_of_another_model_is_refused(artifact, change, message):
    file = artifact.folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(StepError, match=message):
        load_model(artifact)


def test_a_model_published_without_its_pooler_is_loaded(tmp_path):
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=8,
        patch_size=4, num_channels=1,
    )  # fmt: skip
    model = ViTModel(config, add_pooling_layer=False).eval()
    found, pixels = load_model(saved(model, tmp_path)), torch.rand(2, 1, 8, 8)
    hidden = found.read(pixels, ["ln_final"])["ln_final", None]
    assert torch.equal(hidden, model(pixels).last_hidden_state)
    assert found.model.pooler is None
    weights = tmp_path / "model.safetensors"
    save_file({name: value for name, value in load_file(weights).items() if "norm" not in name}, weights)
    with pytest.raises(StepError, match=r"weights of ViTModel are missing .*layernorm"):
        load_model(Artifact(xr.Dataset(), tmp_path))
