"""Models on disk: weights as safetensors, the configuration as JSON beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.step import Artifact, StepError

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def model_files(model: ToyViT) -> Mapping[str, Callable[[Path], None]]:
    """A writer for each file of a ``Model`` artifact. The same weights give the same bytes."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    text = json.dumps({"family": "toy_vit", **asdict(model.config)}, indent=2) + "\n"
    return {
        WEIGHTS: lambda path: save_file(weights, path),
        CONFIG: lambda path: _write(text, path),
    }


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def load_model(artifact: Artifact, device: str = "cpu") -> ToyViT:
    """The model of a ``Model`` artifact, in evaluation mode, its parameters without gradients.

    Raises:
        StepError: when the configuration is of another family, or the weights do not fit it.
    """
    config = json.loads((artifact.folder / CONFIG).read_text(encoding="utf-8"))
    family = config.pop("family", None)
    if family != "toy_vit":
        raise StepError(f"{CONFIG} is of the family {family!r}; only 'toy_vit' can be loaded here")
    with torch.device("meta"):
        model = ToyViT(ToyViTConfig(**config))
    try:
        model.load_state_dict(load_file(artifact.folder / WEIGHTS, device=device), assign=True)
    except RuntimeError as error:
        raise StepError(f"{WEIGHTS} does not hold the model that {CONFIG} describes: {error}") from error
    return model.eval().requires_grad_(False)
