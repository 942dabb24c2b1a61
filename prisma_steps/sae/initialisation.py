"""What an autoencoder starts from: the scale and the centre of the activations."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from prisma_steps.step import StepError

#: Tokens converted at once, so that a table stored in half precision is never held twice.
_CHUNK = 65_536


def expected_norm_factor(tokens: Float[Tensor, "token d_model"]) -> float:
    """The factor that brings the mean of ‖x‖ over ``tokens`` to √d_model.

    Raises:
        StepError: when the activations are not finite or all zero.
    """
    total = sum(chunk.float().norm(dim=1).double().sum().item() for chunk in tokens.split(_CHUNK))
    mean_norm = total / len(tokens)
    if not 0 < mean_norm < float("inf"):
        raise StepError(
            f"the mean norm of the activations is {mean_norm}, which cannot be brought to √d_model: check "
            "the model that they are from"
        )
    return tokens.shape[1] ** 0.5 / mean_norm


def mean_token(tokens: Float[Tensor, "token d_model"]) -> Float[Tensor, " d_model"]:
    """Mean of ``tokens``, summed in float64."""
    total = torch.zeros(tokens.shape[1], dtype=torch.float64)
    for chunk in tokens.split(_CHUNK):
        total += chunk.double().sum(0)
    return (total / len(tokens)).float()


def geometric_median(
    tokens: Float[Tensor, "token d_model"], iterations: int = 100, tolerance: float = 1e-6
) -> Float[Tensor, " d_model"]:
    """The point with the least summed distance to ``tokens`` (Weiszfeld 1937).

    Args:
        tokens: at most ``_CHUNK`` of them are used, evenly spaced.
        iterations: the most fixed-point iterations.
        tolerance: relative change of the summed distance at which to stop.
    """
    sample = tokens[:: -(-len(tokens) // _CHUNK)].float()
    median = sample.mean(0)
    previous = float("inf")
    for _ in range(iterations):
        # A token on the median itself would weigh infinitely much.
        distance = (sample - median).norm(dim=1).clamp_min(1e-12)
        total = distance.double().sum().item()
        if previous - total <= tolerance * total:
            break
        previous = total
        weight = 1 / distance
        median = weight @ sample / weight.sum()
    return median


def centre(tokens: Float[Tensor, "token d_model"], method: str) -> Float[Tensor, " d_model"]:
    """The first b_dec, by ``method``: "zeros", "mean" or "geometric_median"."""
    if method == "zeros":
        return torch.zeros(tokens.shape[1])
    return {"mean": mean_token, "geometric_median": geometric_median}[method](tokens)
