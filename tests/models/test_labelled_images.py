"""Labelled images go in, and their labels come out beside the activations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf
import xarray as xr

from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.inputs import InputError
from prisma_steps.models.preprocessing import Preprocessing
from tests.models.families import make


def images(*shape: int, dims: tuple[str, ...] = ("channel", "row", "column")) -> xr.Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    return xr.Dataset(
        {"pixels": (("image", *dims), pixels)},
        {
            "image": ["a", "b", "c"],
            "label": ("image", [1, 0, 1]),
            "scale": ("image", [0.5, 0.6, 0.7]),
            "channel": np.arange(shape[-3]),
            "class_name": ("class", ["cat", "dog"]),
        },
    )


@pytest.mark.parametrize("name", ["toy", "toy video"])
def test_labels_along_image_are_carried_and_nothing_else(name):
    model = make(name)
    given = (
        images(4, 2, 8, 8, dims=("frame", "channel", "row", "column")) if model.is_video else images(2, 8, 8)
    )
    output, cache = model.run_with_cache(given, ["resid_post", "logits"])
    assert cache.data["image"].values.tolist() == ["a", "b", "c"]
    assert cache.data["label"].dims == ("image",) and cache.data["label"].values.tolist() == [1, 0, 1]
    assert cache.data["scale"].values.tolist() == [0.5, 0.6, 0.7]
    assert {"channel", "class_name"}.isdisjoint(cache.data.coords)
    assert cache["resid_post"].sel(image="b", layer=1).dims == ("token", "d_model")
    pixels = torch.from_numpy(given["pixels"].values).float() / 255
    assert torch.equal(output, model(pixels)) and torch.equal(model(given), output)
    assert torch.equal(model.read(given, ["resid_post"])["resid_post", 0], cache["resid_post", 0])
    zeroed = model.run_with_hooks(given, {"resid_pre": torch.zeros_like})
    assert torch.equal(zeroed, model.run_with_hooks(pixels, {"resid_pre": torch.zeros_like}))
    assert model.read(given, ["resid_post"]).data["image"].values.tolist() == ["a", "b", "c"]


def test_pixels_alone_and_in_another_order_of_dims_are_the_same():
    model, given = make("toy"), images(2, 8, 8)
    turned = given["pixels"].transpose("row", "image", "column", "channel")
    assert torch.equal(model(turned), model(given))
    assert model.run_with_cache(turned, ["logits"])[1].data["label"].values.tolist() == [1, 0, 1]
    assert model.run_with_cache(given.drop_vars("image"), ["logits"])[1].data["image"].values.tolist() == [
        0,
        1,
        2,
    ]


def test_images_of_another_size_are_prepared():
    config = hf.ViTConfig(
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=20,
        image_size=8,
        patch_size=4,
    )
    processor = hf.ViTImageProcessorPil(size={"height": 8, "width": 8})
    model, given = (
        HookedViT(hf.ViTModel(config).eval(), None, None, Preprocessing(processor)),
        images(3, 20, 30),
    )
    expected = processor(list(given["pixels"].values), return_tensors="pt")["pixel_values"]
    assert torch.equal(model(given), model(expected))


def test_pixels_of_another_kind_are_refused():
    given = images(2, 8, 8)
    with pytest.raises(InputError, match="must have `pixels` of uint8, .* these have float32"):
        make("toy")(given.astype(np.float32))
    with pytest.raises(InputError, match=r"these have \['other'\] alone"):
        make("toy")(given.rename(pixels="other"))
    with pytest.raises(InputError, match="still images of 3 channels .* takes still images of 2 channels"):
        make("toy")(images(3, 8, 8))
