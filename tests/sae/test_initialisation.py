from __future__ import annotations

import pytest
import torch

from prisma_steps.sae.autoencoder import Shape
from prisma_steps.sae.initialisation import (
    Sample,
    centre,
    expected_norm_factor,
    geometric_median,
    mean_token,
)
from prisma_steps.sae.topk import TopKAutoencoder
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


@pytest.mark.parametrize("normalise", ["none", "expected_norm", "layer_norm"])
@pytest.mark.parametrize("method", ["mean", "geometric_median", "zeros"])
def test_b_dec_starts_at_a_centre_of_what_the_dictionary_sees(planted, normalise, method):
    sae = TopKAutoencoder(Shape(32, 40, normalise=normalise), k=3)
    mean = Sample(planted.tokens).start(sae, method, 0)
    seen = planted.tokens.double()
    if normalise == "expected_norm":
        seen = seen * (32**0.5 / seen.norm(dim=1).mean())
    if normalise == "layer_norm":
        seen = (seen - seen.mean(1, keepdim=True)) / (seen.std(1, keepdim=True) + 1e-5)
    # float32 against float64, and a median to a relative change of 1e-6 of the summed distance.
    torch.testing.assert_close(sae.b_dec.detach(), centre(seen, method).float(), rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(mean, seen.mean(0).float(), rtol=1e-4, atol=1e-5)


def test_every_layer_and_the_target_have_a_factor_of_their_own(planted):
    x = torch.cat([planted.tokens, 5 * planted.tokens], dim=1)
    crosscoder = TopKAutoencoder(Shape(32, 40, n_layers=2, normalise="expected_norm"), k=3)
    Sample(x).start(crosscoder, "mean", 0)
    first, second = crosscoder.normalisation.norm_factor.tolist()
    assert first == pytest.approx(5 * second, rel=1e-5)
    transcoder = TopKAutoencoder(Shape(32, 40, d_target=64, normalise="layer_norm"), k=3)
    Sample(planted.tokens, x).start(transcoder, "mean", 0)
    assert transcoder.normalisation.norm_factor.item() == 1
    expected = expected_norm_factor(x)
    assert transcoder.normalisation.target_norm_factor.item() == pytest.approx(expected)
