"""A dictionary of ours made of what a file holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prisma_steps.sae.architectures import architecture
from prisma_steps.sae.autoencoder import Autoencoder, Shape
from prisma_steps.sae.formats.files import FormatError, Settings, Tensors
from prisma_steps.step import StepError

#: What made a dictionary sparse in training, where the architecture does not need it afterwards.
_COEFFICIENTS = {"relu": "l1_coefficient", "gated": "l1_coefficient", "jumprelu": "l0_coefficient"}


def build(name: str, shape: Shape, settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Autoencoder:
    """A frozen dictionary of architecture ``name`` with these ``weights``.

    Args:
        name: of the architecture.
        shape: what it reads and writes.
        settings: arguments of its constructor; a coefficient that only training needs may be left out.
        weights: tensors by their names in ``state_dict``; those left out stay as they are made.

    Raises:
        FormatError: when the settings do not fit the shape.
    """
    given = {_COEFFICIENTS[name]: 0.0, **settings} if name in _COEFFICIENTS else settings
    try:
        made = architecture(name)(shape, **given)
    except (StepError, TypeError, ValueError) as error:
        raise FormatError(f"the settings of this {name} dictionary do not fit it: {error}") from error
    made.load_state_dict({**made.state_dict(), **weights})
    return made.requires_grad_(False).eval()


def sparsity_fact(name: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """That the coefficient which made a dictionary sparse is not known, where it is not."""
    coefficient = _COEFFICIENTS.get(name)
    if coefficient is None or coefficient in settings:
        return {}
    return {"sparsity_setting": f"{coefficient} not recorded"}


def known_coefficient(name: str, settings: Settings) -> dict[str, float]:
    """The coefficient which made a dictionary sparse, where the file has it."""
    found = settings.values.get(_COEFFICIENTS.get(name, ""))
    return {_COEFFICIENTS[name]: float(found)} if isinstance(found, int | float) else {}


def core(tensors: Tensors, shape: Shape, biases: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors that all formats name alike.

    Raises:
        FormatError: when one is not there or has another shape.
    """
    return {
        "W_enc": tensors.take("W_enc", shape.d_in, shape.n_latents),
        "W_dec": tensors.take("W_dec", shape.n_latents, shape.d_out),
        **{name: tensors.take(name, shape.n_latents) for name in biases},
    }


def log_of_threshold(threshold: Tensor) -> Tensor:
    """What a JumpReLU dictionary keeps: a latent is positive, so that a threshold below 0 is one of 0."""
    return threshold.clamp_min(0).log()


def one_threshold(threshold: Tensor, file: str) -> Tensor:
    """The threshold that all latents share.

    Raises:
        FormatError: when they do not.
    """
    if (threshold != threshold[0]).any():
        raise FormatError(f"{file}: latents have thresholds of their own, expected one for all of them")
    return threshold[0]


def with_normed_rows(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a dictionary whose latents are weighed by the norm of their decoder rows.

    The largest z_j ‖W_dec,j‖ are kept, and decoded by rows of unit norm: the norms go into the encoder.
    """
    norms = weights["W_dec"].norm(dim=1)
    rows = weights["W_dec"] / norms.clamp_min(torch.finfo(norms.dtype).tiny).unsqueeze(1)
    return {
        **weights,
        "W_dec": rows,
        "W_enc": weights["W_enc"] * norms,
        "b_enc": weights["b_enc"] * norms,
    }
