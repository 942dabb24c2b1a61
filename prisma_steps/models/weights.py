"""The weights of a model as interpretability writes them: by name, layer and head, multiplied from the right.

Names and orientation are those of TransformerLens. With x = ``ln1_out``, q is x W_Q + b_Q, head by head, and
attention writes Σ_head z W_O + b_O. With x = ``ln2_out``, ``mlp_pre`` is x W_in + b_in; of a gated MLP it is
x W_gate + b_gate, and ``mlp_post`` is act(``mlp_pre``) · (x W_in + b_in). An MLP writes ``mlp_post`` W_out +
b_out. W_O, b_O, W_out and b_out are those before LayerScale: what reaches the residual stream is multiplied
by ``HookedViT.layer_scale`` after them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from prisma_steps.models.factored import FactoredMatrix
from prisma_steps.schema import WEIGHT_DIMS, label

if TYPE_CHECKING:
    from prisma_steps.models.structure import Structure

#: The part of a block (``families.BlockTable``) that holds a weight, by what follows ``W_`` or ``b_``.
_PARTS = {"Q": "q", "K": "k", "V": "v", "O": "o", "gate": "mlp_gate", "in": "mlp_in", "out": "mlp_out"}

#: Why a model may lack a weight.
_REASONS = {
    "gate": "its MLPs are not gated",
    "in": "its blocks have no MLP",
    "out": "its blocks have no MLP",
}


class WeightError(LookupError):
    """A weight that the model does not have."""


class Weights:
    """The matrices (W_…) and biases (b_…) of a model, of the names in ``schema.WEIGHT_DIMS``.

    ``weights["W_Q", 3]`` is the tensor of a layer, a view that gradients flow through, ``weights["W_Q"]`` all
    layers as labelled data, a copy. A bias that the model does not have (the keys of BEiT) is zeros.
    """

    def __init__(self, model: Structure) -> None:
        """Look at the weights of ``model`` as they are when they are asked for."""
        self._model = model

    @overload
    def __getitem__(self, key: tuple[str, int | None]) -> Tensor: ...
    @overload
    def __getitem__(self, key: str) -> xr.DataArray: ...
    def __getitem__(self, key: tuple[str, int | None] | str) -> Tensor | xr.DataArray:
        """A tensor by name and layer (None for W_U and b_U), or all layers with labels.

        Raises:
            WeightError: when the model has no such weight or layer.
        """
        return self._labelled(key) if isinstance(key, str) else self.tensor(*key)

    def __repr__(self) -> str:
        """The names of what there is."""
        return f"<Weights of {type(self._model.model).__name__}: {', '.join(self.names)}>"

    @property
    def names(self) -> list[str]:
        """What the model has."""
        return [name for name in WEIGHT_DIMS if self._lack(name) is None]

    @property
    def data(self) -> xr.Dataset:
        """Every weight with labels; a copy of nearly the whole model."""
        return label(xr.Dataset({name: self._labelled(name) for name in self.names}))

    def tensor(self, name: str, layer: int | None = None) -> Tensor:
        """A weight of one layer, or W_U or b_U, with the dims of ``schema.WEIGHT_DIMS``.

        Raises:
            WeightError: when the model has no such weight or layer.
        """
        lack = self._lack(name)
        if lack is not None:
            raise WeightError(f"the model has no {name}: {lack}. It has {', '.join(self.names)}")
        if _once(name):
            if layer is not None:
                raise WeightError(f"{name} exists once: ask for it without the layer {layer}")
            value = _held(name, self._model.unembedding)
            return value.mT if name == "W_U" else value
        if layer is None or layer not in range(self._model.n_layers):
            raise WeightError(
                f"no layer {layer!r} of {name}: the model has layers 0 to {self._model.n_layers - 1}"
            )
        return self._of_block(name, layer)

    # --- circuits of a head

    def ov_circuit(self, layer: int, head: int) -> FactoredMatrix:
        """W_V W_O: what a head writes (before LayerScale) of what it attends to, x ↦ x W_V W_O.

        Elhage et al. 2021 (transformer-circuits.pub/2021/framework). [d_model, d_model] of rank d_head.

        Raises:
            WeightError: when the model has no such weight or layer.
        """
        return FactoredMatrix(self.tensor("W_V", layer)[head], self.tensor("W_O", layer)[head])

    def qk_circuit(self, layer: int, head: int) -> FactoredMatrix:
        """W_Q W_Kᵀ: x W_Q W_Kᵀ yᵀ / √d_head is the score of a query token x on a key token y.

        Biases apart, and where nothing turns or normalises q and k on the way (rotary positions, QK-norm).
        Elhage et al. 2021. [d_model, d_model] of rank d_head.

        Raises:
            WeightError: when the model has no such weight or layer.
        """
        return FactoredMatrix(self.tensor("W_Q", layer)[head], self.tensor("W_K", layer)[head].mT)

    # --- where they are

    def _lack(self, name: str) -> str | None:
        """Why the model has no such weight; None where it has it."""
        model, kind = self._model, name[2:]
        if name not in WEIGHT_DIMS:
            return "there is no such name"
        if _once(name):
            return self._why_no_unembedding()
        fused = kind in ("Q", "K", "V") and model.part(0, "qkv") is not None
        if fused or model.part(0, _PARTS[kind]) is not None:
            return None
        return _REASONS.get(kind, "") or model.family.missing.get("z", "its blocks have no such part")

    def _why_no_unembedding(self) -> str | None:
        head, d_model = self._model.unembedding, self._model.d_model
        if head is None:
            return "it comes without a head"
        weight = getattr(head, "weight", None)
        if not isinstance(weight, Tensor):
            return f"its head, {type(head).__name__}, is no linear map of features"
        if weight.shape[1] != d_model:
            return f"its head reads {weight.shape[1]} features and not the {d_model} of the residual stream"
        return None

    def _of_block(self, name: str, layer: int) -> Tensor:
        kind, model = name[2:], self._model
        fused = model.part(layer, "qkv") if kind in ("Q", "K", "V") else None
        value = _held(name, model.part(layer, _PARTS[kind]) if fused is None else fused)
        if kind in ("Q", "K", "V"):
            value = value if fused is None else value.chunk(3)["QKV".index(kind)]
            value = value.unflatten(0, (model.n_heads, -1))
        turned = value.mT if name.startswith("W_") else value
        return turned.unflatten(0, (model.n_heads, -1)) if name == "W_O" else turned

    def _labelled(self, name: str) -> xr.DataArray:
        model, dims = self._model, WEIGHT_DIMS.get(name, ())
        if _once(name):
            value = self.tensor(name).detach().cpu()
        else:
            layers = [self.tensor(name, layer).detach().cpu() for layer in range(model.n_layers)]
            value, dims = torch.stack(layers), ("layer", *dims)
        value = value.float() if value.dtype == torch.bfloat16 else value  # which numpy does not know
        coords = {dim: np.arange(value.shape[dims.index(dim)]) for dim in ("layer", "head") if dim in dims}
        found = xr.DataArray(value.numpy().copy(), coords, dims, name)
        if "class" in dims and model.class_names is not None:
            found = found.assign_coords(class_name=("class", np.array(model.class_names)))
        return label(found.to_dataset())[name]


def _once(name: str) -> bool:
    """Whether a weight exists once and not once a layer."""
    return name in ("W_U", "b_U")


def _held(name: str, module: Any) -> Tensor:
    """The weight or bias that a module holds, [out, in] or [out], as ``nn.Linear`` keeps them."""
    if name.startswith("W_"):
        return module.weight
    return module.weight.new_zeros(module.weight.shape[0]) if module.bias is None else module.bias
