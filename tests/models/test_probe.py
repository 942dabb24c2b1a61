"""The fit of a probe: against scikit-learn, and against what is known of its optimum."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from prisma_steps.models import probe as module
from prisma_steps.models.probe import TOLERANCE, NotConvergedError, fit, objective, standardisation

N_CLASSES = 4


def silent(_iteration: int, _loss: float) -> None:
    """Report to nobody."""


def noisy(count: int = 300, width: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of very different scales and means, and classes that depend on them but for noise."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(count, width, generator=generator)
    logits = features @ torch.randn(width, N_CLASSES, generator=generator) / 2
    labels = (logits + torch.randn(count, N_CLASSES, generator=generator)).argmax(1)
    return features * torch.logspace(-2, 2, width) + torch.linspace(-3, 30, width), labels


@pytest.mark.parametrize("l2", [1e-3, 1e-2, 1.0])
def test_the_solution_is_that_of_scikit_learn(l2):
    features, labels = noisy()
    found = fit(features, labels, N_CLASSES, l2, silent)
    scaler = StandardScaler()
    standardised = scaler.fit_transform(features.double().numpy())
    # Its objective is C · Σ cross-entropy + ½ ‖weight‖²; Newton's method, where ours is L-BFGS.
    theirs = LogisticRegression(C=1 / (l2 * len(labels)), solver="newton-cholesky", tol=1e-12)
    theirs.fit(standardised, labels.numpy())
    weight = found.weight.numpy() * scaler.scale_
    # A gradient of at most 1e-6 in each of 84 entries where the curvature is l2 or more.
    far = TOLERANCE * weight.size**0.5 / l2
    assert np.linalg.norm(weight - theirs.coef_) < min(far, 2e-4)
    bias = found.weight.numpy() @ scaler.mean_ + found.bias.numpy()
    np.testing.assert_allclose(bias, theirs.intercept_ - theirs.intercept_.mean(), rtol=0, atol=1e-4)


def test_the_gradient_vanishes_at_the_solution_and_every_other_point_is_worse():
    features, labels = noisy()
    found = fit(features, labels, N_CLASSES, 0.01, silent)
    mean, scale = standardisation(features)
    standardised = (features.double() - mean) / scale
    weight, bias = found.weight * scale, found.bias + found.weight @ mean
    weight.requires_grad_()
    bias.requires_grad_()
    value = objective(weight, bias, standardised, labels, 0.01)
    gradients = torch.autograd.grad(value, (weight, bias))
    # Folding the standardisation in and out again rounds at 1e-13.
    assert max(gradient.abs().max().item() for gradient in gradients) <= TOLERANCE + 1e-10
    assert value.item() == pytest.approx(found.objective[-1], abs=1e-12)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        moved = weight.detach() + 1e-2 * torch.randn(weight.shape, generator=generator, dtype=torch.double)
        assert objective(moved, bias.detach(), standardised, labels, 0.01) > value


def test_the_objective_is_mean_cross_entropy_and_half_the_squared_weight():
    features, labels = torch.tensor([[1.0, 2.0], [0.0, -1.0]]).double(), torch.tensor([0, 1])
    weight, bias = torch.tensor([[1.0, 0.0], [0.0, 3.0]]).double(), torch.tensor([0.5, 0.0]).double()
    logits = [(1.5, 6.0), (0.5, -3.0)]
    expected = sum(np.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, (0, 1), strict=True)) / 2
    assert objective(weight, bias, features, labels, 0.2).item() == pytest.approx(expected + 0.1 * 10)


def test_descent_starts_from_chance_and_never_goes_up():
    told: list[tuple[int, float]] = []
    found = fit(*noisy(), N_CLASSES, 0.01, lambda *report: told.append(report))
    assert found.objective[0] == pytest.approx(log(N_CLASSES), abs=1e-12)
    assert all(after <= before for before, after in zip(found.objective, found.objective[1:], strict=False))
    assert told == list(enumerate(found.objective))[1:]


def test_two_points_have_the_solution_that_can_be_solved_for():
    # Standardised, the points are at ±1, and by symmetry the weights are (−w, w), the biases 0:
    # w minimises log(1 + exp(−2w)) + l2 · w², so that l2 · w = 1 / (1 + exp(2w)).
    features, labels, l2 = torch.tensor([[4.0], [10.0]]), torch.tensor([0, 1]), 0.05
    found = fit(features, labels, 2, l2, silent)
    w = found.weight[1, 0].item() * 3
    assert l2 * w == pytest.approx(1 / (1 + np.exp(2 * w)), abs=1e-6)
    assert found.bias.tolist() == pytest.approx([7 * w / 3, -7 * w / 3], abs=1e-5)


def test_separable_classes_are_told_apart():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    features = 5 * torch.eye(3)[labels] + 0.1 * torch.randn(60, 3, generator=generator)
    found = fit(features, labels, 3, 1e-4, silent)
    assert torch.equal((features.double() @ found.weight.T + found.bias).argmax(1), labels)
    assert found.objective[-1] < 0.05


@pytest.mark.parametrize("value", [0.0, 7.0, -3e4])
def test_a_constant_feature_changes_nothing(value):
    features, labels = noisy()
    generator = torch.Generator().manual_seed(2)
    rounding = 1 + 6e-8 * torch.randn(len(features), 1, generator=generator)
    found = fit(torch.cat([features, value * rounding], 1), labels, N_CLASSES, 0.01, silent)
    alone = fit(features, labels, N_CLASSES, 0.01, silent)
    logits = [features.double() @ part.weight[:, :20].T + part.bias for part in (found, alone)]
    shifted = logits[0] + value * found.weight[:, 20]
    torch.testing.assert_close(shifted, logits[1], rtol=0, atol=1e-3)


def test_the_same_features_give_the_same_bits():
    first, again = (fit(*noisy(), N_CLASSES, 0.01, silent) for _ in range(2))
    assert torch.equal(first.weight, again.weight) and torch.equal(first.bias, again.bias)
    assert first.objective == again.objective


def test_an_optimum_that_is_not_reached_is_an_error(monkeypatch):
    monkeypatch.setattr(module, "MAX_ITERATIONS", 3)
    with pytest.raises(NotConvergedError, match="after 3 iterations the objective is .* gradient .*expected 1e-06"):
        fit(*noisy(), N_CLASSES, 0.01, silent)
