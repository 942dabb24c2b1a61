"""Evaluation in a small vision transformer, against runs spliced by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from prisma_steps.models.heads import ZeroShotHead
from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.sae import evaluation as evaluation_module
from prisma_steps.sae.autoencoder import Shape
from prisma_steps.sae.evaluation import Evaluation
from prisma_steps.sae.place import Place
from prisma_steps.step import StepError
from tests.sae.dictionaries import untrained

SIZES = {
    "n_layers": 2,
    "d_model": 8,
    "n_heads": 2,
    "d_mlp": 16,
    "patch_size": 4,
    "image_size": 8,
    "n_channels": 1,
    "n_classes": 3,
}
CONFIG = ToyViTConfig(**SIZES)
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


def dictionary(n_latents: int = 24, **shape):
    return untrained(Shape(8, n_latents, **shape))


class Fixed(nn.Module):
    """A stand-in dictionary whose reconstruction is a function of x."""

    def __init__(self, reconstruct) -> None:
        super().__init__()
        self.shape, self.W_dec, self.reconstruct = Shape(8, 8), torch.eye(8), reconstruct

    def forward(self, x):
        return x, self.reconstruct(x)


def at(*keys, writes=None, tokens="all") -> Place:
    return Place(keys, keys if writes is None else writes, tokens)


def evaluate(vit, autoencoder, pixels, classes, tokens="all", batch_size=4, site=SITE) -> Evaluation:
    return evaluate_at(vit, autoencoder, pixels, classes, at(site, tokens=tokens), batch_size)


def evaluate_at(vit, autoencoder, pixels, classes, place, batch_size=4, cosines=None) -> Evaluation:
    evaluation = Evaluation(autoencoder, place, vit.token_coords()["token_kind"], cosines)
    for first in range(0, len(pixels), batch_size):
        where = slice(first, first + batch_size)
        evaluation.add(vit, pixels[where], None if classes is None else classes[where])
    return evaluation


def scalars(evaluation: Evaluation, site: int = 0) -> dict[str, float]:
    return {**evaluation.clean(), **evaluation.replaced()[site], **evaluation.density()}


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
    found = scalars(evaluate(vit, sae, pixels, classes, tokens))

    def ce(change):
        return spliced_ce(vit, pixels, classes, at_tokens(which, change))

    # float32 logits: two orders of summation differ by some 1e-7 of a cross-entropy of order 1.
    assert found["ce"] == pytest.approx(ce(lambda x: x), abs=1e-6)
    assert found["ce_zero_ablation"] == pytest.approx(ce(torch.zeros_like), abs=1e-6)
    reconstruction = ce(lambda x: sae(x)[1])
    assert found["ce_reconstruction"] == pytest.approx(reconstruction, abs=1e-6)
    assert abs(reconstruction - found["ce"]) > 1e-4


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("site", ["resid_pre", "ln1_out", "attn_out", "resid_mid", "mlp_out", "resid_post"])
def test_runs_that_start_at_the_site_are_those_of_whole_runs(vit, pixels, classes, site, layer):
    sae = dictionary()
    found = scalars(evaluate(vit, sae, pixels, classes, site=(site, layer)))
    whole = spliced_ce(vit, pixels, classes, lambda x: sae(x)[1], (site, layer))
    # float32 logits, summed in batches of other sizes.
    assert found["ce_reconstruction"] == pytest.approx(whole, abs=1e-6)
    assert abs(whole - found["ce"]) > 1e-4


def test_blocks_in_front_of_the_site_run_once(vit, pixels, classes):
    calls = []
    handle = vit.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    try:
        evaluate(vit, dictionary(), pixels, classes, site=("mlp_out", 1), batch_size=len(pixels))
    finally:
        handle.remove()
    assert len(calls) == 1


@pytest.mark.parametrize("tokens", ["all", "cls", "patch"])
def test_ce_with_the_error_term_added_back_is_ce(vit, pixels, classes, tokens):
    found = scalars(evaluate(vit, dictionary(), pixels, classes, tokens))
    # x̂ + (x − x̂) differs from x by one float32 rounding.
    assert found["ce_error_term"] == pytest.approx(found["ce"], abs=1e-6)
    assert found["top1_error_term"] == found["top1"]


def test_a_perfect_dictionary_recovers_everything(vit, pixels, classes):
    evaluation = evaluate(vit, Fixed(lambda x: x), pixels, classes)
    assert scalars(evaluation)["ce_recovered"] == pytest.approx(100, abs=1e-9)
    for metrics in evaluation.by_token_kind()[0].values():
        assert metrics["fvu"] == 0
        assert metrics["cosine_similarity"] == pytest.approx(1)


def test_a_dictionary_of_zeros_recovers_nothing(vit, pixels, classes):
    found = scalars(evaluate(vit, Fixed(torch.zeros_like), pixels, classes))
    assert found["ce_recovered"] == pytest.approx(0, abs=1e-9)


def test_metrics_by_token_kind_are_brute_force(vit, pixels, classes):
    sae = dictionary()
    evaluation = evaluate(vit, sae, pixels, classes)
    _, cache = vit.run_with_cache(pixels, ["resid_post"], [0])
    x = cache[SITE].double().numpy()
    latents, x_hat = sae(cache[SITE])
    x_hat = x_hat.double().numpy()
    (found,) = evaluation.by_token_kind()
    assert list(found) == ["all", "cls", "patch"]
    for kind, which in {"all": slice(None), "cls": slice(0, 1), "patch": slice(1, None)}.items():
        rows, rows_hat = x[:, which].reshape(-1, 8), x_hat[:, which].reshape(-1, 8)
        error = ((rows - rows_hat) ** 2).sum()
        # x and x̂ are float32 and depend on the batch in the last digit.
        assert found[kind]["fvu"] == pytest.approx(error / ((rows - rows.mean(0)) ** 2).sum(), rel=1e-5)
        assert found[kind]["mse"] == pytest.approx(error / len(rows), rel=1e-5)
        assert found[kind]["n_tokens"] == len(rows)
        assert found[kind]["l0"] == (latents[:, which] > 0).sum().item() / len(rows)


def test_registers_are_a_kind_of_their_own(pixels, classes):
    model = ToyViT.initialised(ToyViTConfig(**{**SIZES, "n_registers": 2}), torch.Generator().manual_seed(0))
    with_registers = HookedViT(model.eval().requires_grad_(False))
    sae = dictionary()
    (found,) = evaluate(with_registers, sae, pixels, classes).by_token_kind()
    assert {kind: metrics["n_tokens"] for kind, metrics in found.items()} == {
        "all": 70,
        "cls": 10,
        "register": 20,
        "patch": 40,
    }
    kinds = with_registers.token_coords()["token_kind"]
    _, cache = with_registers.run_with_cache(pixels, ["resid_post"], [0])
    fires = (sae.encode(cache[SITE]) > 0).sum(-1).double().numpy()
    for kind in ("cls", "register", "patch"):
        assert found[kind]["l0"] == pytest.approx(fires[:, kinds == kind].mean())


def test_latents_are_brute_force_over_the_evaluation_set(vit, pixels, classes):
    sae = dictionary()
    found = evaluate(vit, sae, pixels, classes, "patch").by_latent()
    _, cache = vit.run_with_cache(pixels, ["resid_post"], [0])
    latents = sae.encode(cache[SITE])[:, 1:].numpy()
    fires = latents > 0
    np.testing.assert_allclose(found["firing_frequency"], fires.mean((0, 1)))
    np.testing.assert_allclose(found["firing_frequency_per_image"], fires.any(1).mean(0))
    with np.errstate(invalid="ignore"):  # latents that never fire have no mean
        expected = latents.sum((0, 1)) / fires.sum((0, 1))
    # The latents are float32 and depend on the batch in the last digit.
    np.testing.assert_allclose(found["mean_activation"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["max_activation"], latents.max((0, 1)), rtol=1e-5)
    np.testing.assert_array_equal(found["latent_state"] == "dead", ~fires.any((0, 1)))
    np.testing.assert_array_equal(found["latent_state"] == "dense", fires.mean((0, 1)) > 0.1)
    assert set(found["latent_state"]) == {"dead", "alive", "dense"}
    np.testing.assert_allclose(found["decoder_norm"], 1, rtol=1e-6)


def test_few_latents_are_held_at_once(vit, pixels, classes, monkeypatch):
    """Whatever the batch: an image at a time gives what ten at once give."""
    sae = dictionary()
    reference = evaluate(vit, sae, pixels, classes, batch_size=10)
    monkeypatch.setattr(evaluation_module, "LATENT_BYTES", 1)
    seen = []
    sae.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    found = evaluate(vit, sae, pixels, classes, batch_size=10)
    assert seen == [1] * 10
    assert scalars(found) == pytest.approx(scalars(reference), rel=1e-5)
    for name, values in found.by_latent().items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(values, reference.by_latent()[name], rtol=1e-5)


def test_a_transcoder_is_judged_by_its_target(vit, pixels, classes):
    """FVU of y against ŷ, and CE with the target replaced by ŷ, made of what the model reads."""
    sae = dictionary(d_target=8, skip=True)
    sae.W_skip.copy_(torch.randn(8, 8, generator=torch.Generator().manual_seed(3)))
    reads, writes = ("ln2_out", 1), ("mlp_out", 1)
    evaluation = evaluate_at(vit, sae, pixels, classes, at(reads, writes=(writes,)))
    _, cache = vit.run_with_cache(pixels, ["ln2_out", "mlp_out"], [1])
    y, y_hat = cache[writes].flatten(0, 1).double(), sae(cache[reads])[1].flatten(0, 1).double()
    fvu = ((y - y_hat) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
    assert evaluation.by_token_kind()[0]["all"]["fvu"] == pytest.approx(fvu.item(), rel=1e-5)
    found = scalars(evaluation)
    expected = spliced_ce(vit, pixels, classes, lambda _: sae(cache[reads])[1], writes)
    assert found["ce_reconstruction"] == pytest.approx(expected, abs=1e-6)
    assert found["ce_zero_ablation"] == pytest.approx(
        spliced_ce(vit, pixels, classes, torch.zeros_like, writes), abs=1e-6
    )
    assert found["ce_error_term"] == pytest.approx(found["ce"], abs=1e-6)
    assert abs(found["ce_zero_ablation"] - found["ce"]) > 1e-4


def test_a_crosscoder_is_judged_layer_by_layer(vit, pixels, classes):
    """One layer's reconstruction takes that layer's place, and no other's."""
    sae = dictionary(n_layers=2)
    keys = (("resid_post", 1), ("resid_post", 0))  # in the order of the weights, whatever that is
    evaluation = evaluate_at(vit, sae, pixels, classes, at(*keys))
    _, cache = vit.run_with_cache(pixels, ["resid_post"], [0, 1])
    latents, y_hat = sae(torch.cat([cache[key] for key in keys], -1))
    for number, (key, part) in enumerate(zip(keys, y_hat.split(8, -1), strict=True)):
        x, x_hat = cache[key].flatten(0, 1).double(), part.flatten(0, 1).double()
        fvu = ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
        found = evaluation.by_token_kind()[number]["all"]
        assert found["fvu"] == pytest.approx(fvu.item(), rel=1e-5)
        assert found["l0"] == pytest.approx((latents > 0).sum(-1).double().mean().item())
        ce = spliced_ce(vit, pixels, classes, lambda _, part=part: part, key)
        assert scalars(evaluation, number)["ce_reconstruction"] == pytest.approx(ce, abs=1e-6)
        assert scalars(evaluation, number)["ce_error_term"] == pytest.approx(
            scalars(evaluation)["ce"], abs=1e-6
        )


def test_l0_of_topk_is_k(vit, pixels, classes):
    """Off the origin every pre-activation that is kept is positive."""
    sae = dictionary()
    sae.b_enc.fill_(100.0)
    (found,) = evaluate(vit, sae, pixels, classes).by_token_kind()
    assert {metrics["l0"] for metrics in found.values()} == {3}


def test_without_classes_what_needs_no_logits_is_the_same(vit, pixels, classes):
    sae = dictionary()
    with_classes = evaluate(vit, sae, pixels, classes)
    without = evaluate(vit, sae, pixels, None)
    assert without.clean() == {}
    assert without.replaced() == []
    assert without.by_token_kind() == with_classes.by_token_kind()
    assert without.density() == with_classes.density()


def test_temperature_is_taken_off_for_a_second_cross_entropy(vit, pixels, classes):
    """Logits of a zero-shot head are scale · cosine + bias: top-1 stays, and CE is of the cosines."""

    text = torch.randn(3, 3, generator=torch.Generator().manual_seed(5))
    head = ZeroShotHead(text, scale=20.0, bias=-3.0)

    class ZeroShot:
        def run_with_cache(self, *given):
            logits, cache = vit.run_with_cache(*given)
            return head(type("Returned", (), {"image_embeds": logits})), cache

        def run_with_hooks(self, *given):
            return head(type("Returned", (), {"image_embeds": vit.run_with_hooks(*given)}))

        def forward_from(self, *given):
            return head(type("Returned", (), {"image_embeds": vit.forward_from(*given)}))

    model = ZeroShot()
    place = at(SITE)
    evaluation = Evaluation(
        dictionary(),
        place,
        vit.token_coords()["token_kind"],
        lambda logits: (logits.double() - head.bias) / head.scale,
    )
    evaluation.add(model, pixels, classes)
    found = scalars(evaluation)
    cosines = nn.functional.normalize(vit(pixels), dim=-1) @ nn.functional.normalize(text, dim=-1).T
    own = nn.functional.cross_entropy(20 * cosines.double() - 3, classes).item()
    without = nn.functional.cross_entropy(cosines.double(), classes).item()
    # Logits are float32 of order 20.
    assert found["ce"] == pytest.approx(own, abs=1e-5)
    assert found["ce_without_temperature"] == pytest.approx(without, abs=1e-6)
    assert found["top1"] == (cosines.argmax(1) == classes).double().mean().item()
    lost = found["ce_zero_ablation_without_temperature"] - found["ce_without_temperature"]
    kept = found["ce_zero_ablation_without_temperature"] - found["ce_reconstruction_without_temperature"]
    assert found["ce_recovered_without_temperature"] == pytest.approx(100 * kept / lost)


@pytest.mark.parametrize(("tokens", "kinds"), [("cls", ["all", "cls"]), ("patch", ["all", "patch"])])
def test_token_kinds_that_are_not_evaluated_are_left_out(vit, pixels, classes, tokens, kinds):
    (found,) = evaluate(vit, dictionary(), pixels, classes, tokens).by_token_kind()
    assert list(found) == kinds
    assert found["all"] == found[kinds[1]]


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_the_batch_size_changes_nothing(vit, pixels, classes, batch_size):
    """Up to float32 rounding inside the model, whose matrix products depend on the shape."""
    sae = dictionary()
    reference = evaluate(vit, sae, pixels, classes, batch_size=4)
    found = evaluate(vit, sae, pixels, classes, batch_size=batch_size)
    assert scalars(found) == pytest.approx(scalars(reference), rel=1e-5)
    for kind, metrics in found.by_token_kind()[0].items():
        assert metrics == pytest.approx(reference.by_token_kind()[0][kind], rel=1e-5)


def test_a_site_without_layer_can_be_evaluated(vit, pixels, classes):
    evaluation = evaluate(vit, Fixed(lambda x: x), pixels, classes, site=("ln_final", None))
    assert scalars(evaluation)["ce_recovered"] == pytest.approx(100)


def test_a_dictionary_of_another_width_is_refused(vit, pixels, classes):
    with pytest.raises(StepError, match="mlp_post of this model is 16 wide, the dictionary 8"):
        evaluate(vit, dictionary(), pixels, classes, site=("mlp_post", 0))
    wide = at(SITE, writes=(("mlp_post", 0),))
    with pytest.raises(StepError, match="mlp_post of this model is 16 wide, the dictionary 8"):
        evaluate_at(vit, dictionary(d_target=8), pixels, classes, wide)


def test_tokens_that_the_site_lacks_are_refused():
    with pytest.raises(StepError, match="tokens = 'cls': the site has no such token, only patch"):
        Evaluation(dictionary(), at(("embed", None), tokens="cls"), np.array(["patch"] * 4))
