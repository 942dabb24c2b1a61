"""Dictionaries as labelled data, as artifacts hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import xarray as xr

from prisma_steps.sae.architectures import architecture
from prisma_steps.sae.autoencoder import Autoencoder, Shape

#: Fields of a shape that no dim tells, kept as attributes.
_SHAPE_ATTRS = ("skip", "subtract_b_dec", "normalise", "unit_norm")


def dictionary_dataset(
    autoencoder: Autoencoder, history: Mapping[str, Sequence[float]], trained_on: Mapping[str, Any]
) -> xr.Dataset:
    """Weights, settings and training history of a dictionary.

    A crosscoder's weights have the dim ``layer``; what a transcoder writes has ``d_target`` in place of
    ``d_model``.

    Args:
        autoencoder: whose tensors become variables and whose settings become attributes.
        history: ``step`` and ``tokens_seen``, and curves of the same length; may be empty.
        trained_on: where in the model the dictionary belongs: ``site``, ``layer`` (or ``layers``, which
            become the coordinate of a crosscoder), ``target_site``, ``tokens``.
    """
    state = {name.rpartition(".")[2]: tensor for name, tensor in autoencoder.state_dict().items()}
    dims, sizes = weight_dims(autoencoder), _sizes(autoencoder.shape)
    weights = {
        name: (dims[name], state[name].detach().cpu().reshape([sizes[dim] for dim in dims[name]]).numpy())
        for name in dims
    }
    curves = {name: ("step", list(values)) for name, values in history.items() if name != "step"}
    shape = {name: getattr(autoencoder.shape, name) for name in _SHAPE_ATTRS}
    place = dict(trained_on)
    layers = place.pop("layers", None)
    coords = {"step": list(history["step"])} if history else {}
    data = xr.Dataset(
        {**weights, **curves},
        coords=coords if layers is None else {**coords, "layer": list(layers)},
        attrs={
            "kind": autoencoder.shape.kind,
            "architecture": autoencoder.architecture,
            "sparsity_setting": autoencoder.sparsity_setting,
            **{name: _plain(value) for name, value in shape.items()},
            **{name: getattr(autoencoder, name) for name in autoencoder.settings},
            **place,
        },
    )
    return data.set_coords("tokens_seen") if "tokens_seen" in data else data


def load_dictionary(data: xr.Dataset, device: str = "cpu") -> Autoencoder:
    """The dictionary that labelled data hold, frozen, on ``device``."""
    kind = architecture(data.attrs["architecture"])
    settings = {name: data.attrs[name] for name in kind.settings}
    autoencoder = kind(_shape(data), **settings)
    dims, state = weight_dims(autoencoder), autoencoder.state_dict()
    weights = {}
    for name, place in state.items():
        short = name.rpartition(".")[2]
        if short not in dims:
            weights[name] = place
            continue
        values = data[short].transpose(*dims[short]).values
        weights[name] = torch.tensor(values).reshape(place.shape)
    autoencoder.load_state_dict(weights)
    return autoencoder.requires_grad_(False).eval().to(device)


def weight_dims(autoencoder: Autoencoder) -> dict[str, tuple[str, ...]]:
    """Dims of every tensor of a dictionary, by its name."""
    kind = autoencoder.shape.kind
    read = ("layer", "d_model") if kind == "crosscoder" else ("d_model",)
    written = ("d_target",) if kind == "transcoder" else read
    dims: dict[str, tuple[str, ...]] = {
        "W_enc": (*read, "latent"),
        "W_dec": ("latent", *written),
        **dict.fromkeys(autoencoder.biases, ("latent",)),
        "b_dec": written,
        "norm_factor": ("layer",) if kind == "crosscoder" else (),
    }
    if kind == "transcoder":
        dims["target_norm_factor"] = ()
    if autoencoder.shape.skip:
        dims["W_skip"] = (*read, *written)
    own = [name for name, _ in autoencoder.named_buffers(recurse=False)]
    return {**dims, **dict.fromkeys(own, ())}


def _shape(data: xr.Dataset) -> Shape:
    """The shape that dims and attributes tell."""
    target: Any = data.sizes.get("d_target")
    flags = {name: data.attrs[name] for name in _SHAPE_ATTRS}
    for name in ("skip", "subtract_b_dec", "unit_norm"):
        flags[name] = bool(flags[name])
    n_layers = data.sizes["layer"] if data.attrs["kind"] == "crosscoder" else 1
    return Shape(data.sizes["d_model"], data.sizes["latent"], n_layers, target, **flags)


def _sizes(shape: Shape) -> Mapping[str, int]:
    return {
        "d_model": shape.d_model,
        "latent": shape.n_latents,
        "layer": shape.n_layers,
        "d_target": shape.d_out,
    }


def _plain(value: bool | str) -> int | str:
    """As a Zarr attribute that reads back the same everywhere."""
    return int(value) if isinstance(value, bool) else value
