from __future__ import annotations

import pytest
import torch

from prisma_steps.sae.initialisation import centre, expected_norm_factor, geometric_median, mean_token
from prisma_steps.step import StepError


def test_factor_brings_the_mean_norm_to_root_d_model(planted):
    factor = expected_norm_factor(planted.tokens)
    mean_norm = (factor * planted.tokens.double()).norm(dim=1).mean().item()
    assert mean_norm == pytest.approx(32**0.5, rel=1e-6)


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_activations_without_a_scale_are_refused(bad):
    with pytest.raises(StepError, match="mean norm of the activations is"):
        expected_norm_factor(torch.full((4, 3), bad))


def test_mean_is_right_in_half_precision_and_far_from_the_origin():
    tokens = (torch.randn(70_000, 2, generator=torch.Generator().manual_seed(0)) + 100).half()
    torch.testing.assert_close(mean_token(tokens), tokens.double().mean(0).float())


def test_geometric_median_ignores_an_outlier_and_is_a_minimum():
    cluster = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    tokens = torch.cat([cluster, torch.full((20, 3), 1000.0)])
    median = geometric_median(tokens)
    assert median.norm() < 0.5 < mean_token(tokens).norm()

    def distance(point):
        return (tokens.double() - point.double()).norm(dim=1).sum().item()

    for shift in (*torch.eye(3) * 0.05, *-torch.eye(3) * 0.05):
        assert distance(median) < distance(median + shift)


def test_geometric_median_of_a_triangle_is_its_fermat_point():
    """Of an equilateral triangle, the centre; a start on a data point must not stop it."""
    triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2], [0.5, 3**0.5 / 6]])
    torch.testing.assert_close(geometric_median(triangle), triangle[3], atol=1e-5, rtol=0)


def test_centre_scales_with_the_tokens(planted):
    """Why b_dec may be found before the activations are normalised."""
    for method in ("mean", "geometric_median"):
        scaled = centre(3 * planted.tokens, method)
        torch.testing.assert_close(scaled, 3 * centre(planted.tokens, method), rtol=1e-4, atol=1e-5)
    assert centre(planted.tokens, "zeros").tolist() == [0.0] * 32
