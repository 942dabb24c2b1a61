"""Heads for models that come without one: a linear probe, and zero-shot classification by text.

A head is called with what the model returns, computes in float32 whatever the model computes in, and lies
beside its weights: ``head.safetensors`` holds its tensors, and in its metadata which head it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from prisma_steps.step import StepError

HEAD = "head.safetensors"

#: What of the last hidden state a probe reads: CLS, the mean of the patches, or both side by side.
Features: TypeAlias = Literal["cls", "mean_patch", "cls_mean_patch"]


class LinearProbe(nn.Module):
    """Logits as a linear function of the model's features."""

    def __init__(
        self,
        weight: Float[Tensor, "class feature"],
        bias: Float[Tensor, " class"],
        features: Features,
        n_prefix: int,
    ) -> None:
        """Read ``features`` of a model with ``n_prefix`` tokens before its patches."""
        super().__init__()
        self.weight, self.bias = nn.Buffer(weight), nn.Buffer(bias)
        self.features: Features = features
        self.n_prefix = n_prefix

    @property
    def out_features(self) -> int:
        """Number of classes."""
        return len(self.bias)

    def forward(self, returned: Any) -> Float[Tensor, "image class"]:
        """Logits of what the model returned."""
        features = features_of(returned.last_hidden_state, self.features, self.n_prefix)
        return F.linear(features.to(self.weight.dtype), self.weight, self.bias)


def features_of(
    hidden: Float[Tensor, "image token d_model"], features: Features, n_prefix: int
) -> Float[Tensor, "image feature"]:
    """What a probe reads of the last hidden state of a model with ``n_prefix`` tokens before its patches."""
    parts = {"cls": lambda: hidden[:, 0], "mean_patch": lambda: hidden[:, n_prefix:].mean(1)}
    wanted = {"cls_mean_patch": ("cls", "mean_patch")}.get(features, (features,))
    return torch.cat([parts[name]() for name in wanted], dim=-1)


class ZeroShotHead(nn.Module):
    """Cosines of the image's embedding to those of texts, times a scale, plus SigLIP's bias.

    Radford et al. 2021 (arXiv 2103.00020), section 3.1.4; Zhai et al. 2023 (arXiv 2303.15343), equation 1.
    """

    def __init__(self, text: Float[Tensor, "class embedding"], scale: float, bias: float = 0.0) -> None:
        """Compare with ``text``, one embedding a class; ``scale`` is the inverse of the temperature."""
        super().__init__()
        self.text = nn.Buffer(F.normalize(text, dim=-1))
        self.scale, self.bias = nn.Buffer(torch.tensor(scale)), nn.Buffer(torch.tensor(bias))

    @property
    def out_features(self) -> int:
        """Number of classes."""
        return len(self.text)

    def embedding(self, returned: Any) -> Float[Tensor, "image embedding"]:
        """The image's embedding in what the model returned, not normalised."""
        embedding = getattr(returned, "image_embeds", None)
        return (returned.pooler_output if embedding is None else embedding).to(self.text.dtype)

    def forward(self, returned: Any) -> Float[Tensor, "image class"]:
        """Logits of what the model returned."""
        return self.scale * F.normalize(self.embedding(returned), dim=-1) @ self.text.T + self.bias


def head_files(head: nn.Module) -> Mapping[str, Callable[[Path], None]]:
    """A writer for the file of a head. The same head gives the same bytes."""
    told: dict[str, Any] = {"kind": type(head).__name__}
    if isinstance(head, LinearProbe):
        told |= {"features": head.features, "n_prefix": head.n_prefix}
    # One entry: safetensors writes several in an order that changes from one run to the next.
    metadata = {"head": json.dumps(told, sort_keys=True)}
    tensors = {name: value.cpu().contiguous() for name, value in head.state_dict().items()}
    return {HEAD: lambda path: save_file(tensors, path, metadata=metadata)}


def load_head(folder: Path) -> LinearProbe | ZeroShotHead | None:
    """The head that lies in a model's folder; None where there is none.

    Raises:
        StepError: when the file is of no known head.
    """
    file = folder / HEAD
    if not file.exists():
        return None
    with safe_open(file, framework="pt") as opened:
        told = json.loads((opened.metadata() or {}).get("head", "{}"))
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  not a dict
    if told.get("kind") == "LinearProbe":
        return LinearProbe(tensors["weight"], tensors["bias"], told["features"], told["n_prefix"])
    if told.get("kind") == "ZeroShotHead":
        return ZeroShotHead(tensors["text"], tensors["scale"].item(), tensors["bias"].item())
    raise StepError(f"{HEAD} is of the kind {told.get('kind')!r}, expected LinearProbe or ZeroShotHead")
