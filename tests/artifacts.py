"""Artifacts as steps leave and take them, for tests that call steps themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import xarray as xr

from prisma_steps.data.pixels import raw_batch
from prisma_steps.models.loading import model_files
from prisma_steps.step import Artifact, Output


def left(output: Output, folder: Path) -> Artifact:
    """What a step returned, as the next one gets it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in output.files.items():
        write(folder / name)
    return Artifact(output.data, folder)


def saved(model: Any, folder: Path, data: xr.Dataset | None = None) -> Artifact:
    """A model of ``transformers`` with what is known of it, as a ``Model`` artifact."""
    return left(Output(xr.Dataset() if data is None else data, model_files(model)), folder)


def scaled(images: xr.Dataset, where: Any = slice(None)) -> torch.Tensor:
    """The pixels of some images as a toy ViT takes them, float32 in [0, 1]."""
    return raw_batch(images, where).float() / 255
