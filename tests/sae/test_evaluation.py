"""Evaluation in a small vision transformer, against runs spliced by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.sae.architectures import architecture
from prisma_steps.sae.evaluation import Evaluation
from prisma_steps.step import StepError

CONFIG = ToyViTConfig(
    n_layers=2, d_model=8, n_heads=2, d_mlp=16, patch_size=4, image_size=8, n_channels=1, n_classes=3
)
SITE = ("resid_post", 0)


@pytest.fixture(scope="module")
def vit() -> HookedViT:
    model = ToyViT.initialised(CONFIG, torch.Generator().manual_seed(0))
    return HookedViT(model.eval().requires_grad_(False))


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def classes() -> torch.Tensor:
    return torch.arange(10) % 3


def dictionary(n_latents: int = 24):
    autoencoder = architecture("topk")(8, n_latents, k=3, aux_k_coefficient=0.0)
    autoencoder.initialise(torch.full((8,), 0.1), 1.3, torch.Generator().manual_seed(2))
    return autoencoder.requires_grad_(False)


class Fixed(nn.Module):
    """A stand-in dictionary whose reconstruction is a function of x."""

    def __init__(self, reconstruct) -> None:
        super().__init__()
        self.W_dec, self.b_enc, self.b_dec = torch.eye(8), torch.zeros(8), torch.zeros(8)
        self.decode = reconstruct

    def encode(self, x):
        return x


def evaluate(vit, autoencoder, pixels, classes, tokens="all", batch_size=4, site=SITE) -> Evaluation:
    evaluation = Evaluation(autoencoder, site, vit.token_coords()["token_kind"], tokens)
    for first in range(0, len(pixels), batch_size):
        where = slice(first, first + batch_size)
        evaluation.add(vit, pixels[where], classes[where])
    return evaluation


def spliced_ce(vit, pixels, classes, change, site=SITE) -> float:
    """Mean cross-entropy with ``change`` applied to the activations at the site."""
    logits = vit.run_with_hooks(pixels, {site: change}).double()
    return nn.functional.cross_entropy(logits, classes).item()


def at_tokens(which: slice, change):
    """A hook that changes some tokens and leaves the others."""

    def hook(x):
        out = x.clone()
        out[:, which] = change(x[:, which])
        return out

    return hook


@pytest.mark.parametrize(
    ("tokens", "which"), [("all", slice(None)), ("cls", slice(0, 1)), ("patch", slice(1, None))]
)
def test_cross_entropies_are_those_of_runs_spliced_by_hand(vit, pixels, classes, tokens, which):
    """Only the tokens that the dictionary was trained on are replaced, in each of the runs."""
    sae = dictionary()
    scalars = evaluate(vit, sae, pixels, classes, tokens).scalars()

    def ce(change):
        return spliced_ce(vit, pixels, classes, at_tokens(which, change))

    # float32 logits: two orders of summation differ by some 1e-7 of a cross-entropy of order 1.
    assert scalars["ce"] == pytest.approx(ce(lambda x: x), abs=1e-6)
    assert scalars["ce_zero_ablation"] == pytest.approx(ce(torch.zeros_like), abs=1e-6)
    reconstruction = ce(lambda x: sae.decode(sae.encode(x)))
    assert scalars["ce_reconstruction"] == pytest.approx(reconstruction, abs=1e-6)
    assert abs(reconstruction - scalars["ce"]) > 1e-4


@pytest.mark.parametrize("tokens", ["all", "cls", "patch"])
def test_ce_with_the_error_term_added_back_is_ce(vit, pixels, classes, tokens):
    scalars = evaluate(vit, dictionary(), pixels, classes, tokens).scalars()
    # x̂ + (x − x̂) differs from x by one float32 rounding.
    assert scalars["ce_error_term"] == pytest.approx(scalars["ce"], abs=1e-6)


def test_a_perfect_dictionary_recovers_everything(vit, pixels, classes):
    evaluation = evaluate(vit, Fixed(lambda x: x), pixels, classes)
    assert evaluation.scalars()["ce_recovered"] == pytest.approx(100, abs=1e-9)
    for metrics in evaluation.by_token_kind().values():
        assert metrics["fvu"] == 0
        assert metrics["cosine_similarity"] == pytest.approx(1)


def test_a_dictionary_of_zeros_recovers_nothing(vit, pixels, classes):
    scalars = evaluate(vit, Fixed(torch.zeros_like), pixels, classes).scalars()
    assert scalars["ce_recovered"] == pytest.approx(0, abs=1e-9)


def test_metrics_by_token_kind_are_brute_force(vit, pixels, classes):
    sae = dictionary()
    evaluation = evaluate(vit, sae, pixels, classes)
    _, cache = vit.run_with_cache(pixels, ["resid_post"], [0])
    x = cache[SITE].double().numpy()
    latents = sae.encode(cache[SITE])
    x_hat = sae.decode(latents).double().numpy()
    found = evaluation.by_token_kind()
    assert list(found) == ["all", "cls", "patch"]
    for kind, which in {"all": slice(None), "cls": slice(0, 1), "patch": slice(1, None)}.items():
        rows, rows_hat = x[:, which].reshape(-1, 8), x_hat[:, which].reshape(-1, 8)
        error = ((rows - rows_hat) ** 2).sum()
        # x and x̂ are float32 and depend on the batch in the last digit.
        assert found[kind]["fvu"] == pytest.approx(error / ((rows - rows.mean(0)) ** 2).sum(), rel=1e-5)
        assert found[kind]["mse"] == pytest.approx(error / len(rows), rel=1e-5)
        assert found[kind]["n_tokens"] == len(rows)
        assert found[kind]["l0"] == (latents[:, which] > 0).sum().item() / len(rows)


def test_firing_is_counted_over_the_evaluation_set(vit, pixels, classes):
    sae = dictionary()
    found = evaluate(vit, sae, pixels, classes, "patch").by_latent()
    _, cache = vit.run_with_cache(pixels, ["resid_post"], [0])
    fires = sae.encode(cache[SITE])[:, 1:].numpy() > 0
    np.testing.assert_allclose(found["firing_frequency"], fires.mean((0, 1)))
    np.testing.assert_allclose(found["firing_frequency_per_image"], fires.any(1).mean(0))


@pytest.mark.parametrize(("tokens", "kinds"), [("cls", ["all", "cls"]), ("patch", ["all", "patch"])])
def test_token_kinds_that_are_not_evaluated_are_left_out(vit, pixels, classes, tokens, kinds):
    found = evaluate(vit, dictionary(), pixels, classes, tokens).by_token_kind()
    assert list(found) == kinds
    assert found["all"] == found[kinds[1]]


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_the_batch_size_changes_nothing(vit, pixels, classes, batch_size):
    """Up to float32 rounding inside the model, whose matrix products depend on the shape."""
    sae = dictionary()
    reference = evaluate(vit, sae, pixels, classes, batch_size=4)
    found = evaluate(vit, sae, pixels, classes, batch_size=batch_size)
    assert found.scalars() == pytest.approx(reference.scalars(), rel=1e-5)
    for kind, metrics in found.by_token_kind().items():
        assert metrics == pytest.approx(reference.by_token_kind()[kind], rel=1e-5)


def test_a_site_without_layer_can_be_evaluated(vit, pixels, classes):
    evaluation = evaluate(vit, Fixed(lambda x: x), pixels, classes, site=("ln_final", None))
    assert evaluation.scalars()["ce_recovered"] == pytest.approx(100)


def test_a_dictionary_of_another_width_is_refused(vit, pixels, classes):
    with pytest.raises(StepError, match="mlp_post of this model is 16 wide, the dictionary 8"):
        evaluate(vit, dictionary(), pixels, classes, site=("mlp_post", 0))


def test_tokens_that_the_site_lacks_are_refused():
    with pytest.raises(StepError, match="tokens = 'cls': the site has no such token, only patch"):
        Evaluation(dictionary(), ("embed", None), np.array(["patch"] * 4), "cls")
