"""Fitting a linear probe: multinomial logistic regression on standardised features, to its minimum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor, nn
from torch.nn import functional as F

from prisma_steps.models.heads import Features, features_of

#: Largest entry of the gradient at which the minimum counts as found; rounding stops descent near 1e-7.
TOLERANCE = 1e-6

#: Iterations of L-BFGS after which it is given up; some hundreds are usual.
MAX_ITERATIONS = 5000

#: A feature whose deviation is smaller than this share of its mean is constant but for float32 rounding.
_CONSTANT = 1e-6


class NotConvergedError(ValueError):
    """The minimum was not found in ``MAX_ITERATIONS``."""


class FeatureHead(nn.Module):
    """In the place of a model's head: the features that a probe reads."""

    def __init__(self, features: Features, n_prefix: int) -> None:
        """Read ``features`` of a model with ``n_prefix`` tokens before its patches."""
        super().__init__()
        self.features: Features = features
        self.n_prefix = n_prefix

    def forward(self, returned: Any) -> Float[Tensor, "image feature"]:
        """The features of what the model returned."""
        return features_of(returned.last_hidden_state, self.features, self.n_prefix)


@dataclass(frozen=True)
class Fit:
    """A linear probe at the minimum of its objective.

    Attributes:
        weight: applies to features as they are: the standardisation is folded in.
        bias: likewise.
        objective: in nat, before the first iteration of L-BFGS and after each.
    """

    weight: Float[Tensor, "class feature"]
    bias: Float[Tensor, " class"]
    objective: list[float]


def objective(
    weight: Float[Tensor, "class feature"],
    bias: Float[Tensor, " class"],
    features: Float[Tensor, "image feature"],
    labels: Int[Tensor, " image"],
    l2: float,
) -> Float[Tensor, ""]:
    """Mean cross-entropy + l2/2 · ‖weight‖², in nat; the bias is free."""
    return F.cross_entropy(F.linear(features, weight, bias), labels) + l2 / 2 * weight.square().sum()


def fit(
    features: Float[Tensor, "image feature"],
    labels: Int[Tensor, " image"],
    n_classes: int,
    l2: float,
    after_iteration: Callable[[int, float], None],
) -> Fit:
    """Minimise ``objective`` of the standardised features, in float64, by L-BFGS.

    The objective is strictly convex but for a shift of all biases, which stays at mean 0; so the minimum is
    one, whatever leads there. L-BFGS-B of SciPy (Zhu et al. 1997), as in scikit-learn.

    Args:
        features: as the model gives them, finite.
        labels: the class of each image.
        n_classes: number of classes.
        l2: penalty of the weights of standardised features, positive.
        after_iteration: called with the number of iterations done and the objective in nat.

    Raises:
        NotConvergedError: telling how large the gradient still is.
    """
    mean, scale = standardisation(features)
    standardised = (features.double() - mean) / scale
    weight, bias, history = _minimise(standardised, labels, n_classes, l2, after_iteration)
    folded = weight / scale
    return Fit(folded, bias - folded @ mean, history)


def standardisation(
    features: Float[Tensor, "image feature"],
) -> tuple[Float[Tensor, " feature"], Float[Tensor, " feature"]]:
    """Mean and standard deviation (of the whole, not of a sample) of each feature; 1 where it is constant."""
    mean = features.double().mean(0)
    deviation = features.double().std(0, correction=0)
    return mean, torch.where(deviation > _CONSTANT * mean.abs(), deviation, 1.0)


def _minimise(
    features: Float[Tensor, "image feature"],
    labels: Int[Tensor, " image"],
    n_classes: int,
    l2: float,
    after_iteration: Callable[[int, float], None],
) -> tuple[Float[Tensor, "class feature"], Float[Tensor, " class"], list[float]]:
    """Weight and bias at the minimum, and the objective before the first iteration and after each."""
    history: list[float] = []

    def unpack(flat: np.ndarray) -> Tensor:
        """[class, feature and bias]."""
        return torch.from_numpy(flat.copy()).to(features.device).view(n_classes, -1)

    def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        both = unpack(flat).requires_grad_()
        loss = objective(both[:, :-1], both[:, -1], features, labels, l2)
        (gradient,) = torch.autograd.grad(loss, both)
        if not history:
            history.append(loss.item())
        return loss.item(), gradient.flatten().cpu().numpy()

    def callback(intermediate_result: OptimizeResult) -> None:
        history.append(float(intermediate_result.fun))
        after_iteration(len(history) - 1, history[-1])

    start = np.zeros(n_classes * (features.shape[1] + 1))
    options = {"gtol": TOLERANCE, "ftol": 0.0, "maxiter": MAX_ITERATIONS, "maxfun": 2 * MAX_ITERATIONS}
    found = minimize(
        value_and_gradient, start, jac=True, method="L-BFGS-B", callback=callback, options=options
    )
    steepest = abs(found.jac).max()
    if not steepest <= TOLERANCE:
        raise NotConvergedError(
            f"after {found.nit} iterations the objective is {found.fun:.6g} and the largest entry of its "
            f"gradient {steepest:.1e}, expected {TOLERANCE:.0e} or less"
        )
    both = unpack(found.x)
    return both[:, :-1], both[:, -1], history
