"""Dictionaries on disk and in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import xarray as xr

from prisma_steps.sae.architectures import architecture
from prisma_steps.sae.autoencoder import Autoencoder

#: Dims of the weights that every architecture has.
_DIMS = {
    "W_enc": ("d_model", "latent"),
    "W_dec": ("latent", "d_model"),
    "b_enc": ("latent",),
    "b_dec": ("d_model",),
    "norm_factor": (),
}


def dictionary_dataset(
    autoencoder: Autoencoder, history: Mapping[str, Sequence[float]], trained_on: Mapping[str, str | int]
) -> xr.Dataset:
    """Weights, settings and training history of an autoencoder.

    Args:
        autoencoder: whose tensors become variables and whose settings become attributes.
        history: ``step`` and ``tokens_seen``, and curves of the same length.
        trained_on: further attributes: where in the model the dictionary belongs.
    """
    weights = {
        name: (_DIMS[name], tensor.detach().cpu().numpy())
        for name, tensor in autoencoder.state_dict().items()
    }
    curves = {name: ("step", list(values)) for name, values in history.items() if name != "step"}
    settings = {name: getattr(autoencoder, name) for name in autoencoder.settings}
    data = xr.Dataset(
        {**weights, **curves},
        coords={"step": list(history["step"])},
        attrs={
            "architecture": autoencoder.architecture,
            "sparsity_setting": autoencoder.sparsity_setting,
            **settings,
            **trained_on,
        },
    )
    return data.set_coords("tokens_seen")


def load_dictionary(data: xr.Dataset, device: str = "cpu") -> Autoencoder:
    """The autoencoder of a ``Dictionary``, frozen, on ``device``."""
    kind = architecture(data.attrs["architecture"])
    settings = {name: data.attrs[name] for name in kind.settings}
    autoencoder = kind(data.sizes["d_model"], data.sizes["latent"], **settings)
    weights = {name: torch.tensor(data[name].values) for name in autoencoder.state_dict()}
    autoencoder.load_state_dict(weights)
    return autoencoder.requires_grad_(False).eval().to(device)
