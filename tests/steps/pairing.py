"""A small model of three shapes and images for it, for the tests of steps that take pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.seeding import torch_generator
from prisma_steps.step import Artifact
from tests.artifacts import saved

CLASS_NAMES = ["square", "ellipse", "heart"]
CONFIG = ToyViTConfig(
    n_layers=2, d_model=16, n_heads=2, d_mlp=32, patch_size=4, image_size=8, n_channels=1, n_classes=3
)


def model_in(folder: Path, config: ToyViTConfig = CONFIG) -> Artifact:
    """A model of random weights."""
    vit = ToyViT.initialised(config, torch_generator(0, "weights"))
    return saved(vit, folder, xr.Dataset(coords={"class_name": ("class", CLASS_NAMES)}))


def eighteen_images() -> xr.Dataset:
    """Six images of noise of each class."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (18, 1, 8, 8), "uint8")
    return xr.Dataset(
        {"pixels": (("image", "channel", "row", "column"), pixels)},
        coords={
            "image": [f"sprite-{n:02}" for n in range(18)],
            "label": ("image", np.repeat(np.arange(3), 6)),
            "class_name": ("class", CLASS_NAMES),
        },
    )
