"""Dictionaries in a model against hooks written by hand, and identities that must hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.sites import SiteError
from prisma_steps.models.splicing import Splice, SpliceError
from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.sae.autoencoder import Autoencoder, Shape
from prisma_steps.sae.labelled import dictionary_dataset
from prisma_steps.sae.placed import as_splice
from tests.models.families import MAKERS, TOY, make, pixels_for
from tests.sae.dictionaries import SETTINGS
from tests.sae.published import dictionary

FIRST, SECOND = ("resid_post", 0), ("resid_mid", 1)
AUTOENCODER = Shape(12, 30)
TRANSCODER = Shape(12, 30, d_target=12, skip=True, subtract_b_dec=False)


@pytest.fixture
def vit() -> HookedViT:
    """A toy ViT: 2 layers, width 12, CLS and 4 patches, 5 classes."""
    torch.manual_seed(0)
    return HookedViT(ToyViT(ToyViTConfig(**TOY)).eval().requires_grad_(False))


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))


class Identity(nn.Module):
    """A perfect dictionary."""

    shape = Shape(12, 12)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def decode(self, latents: torch.Tensor, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        return latents


# --- identities


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "resid_post", "ln2_out", "attn_out", "mlp_out"])
@pytest.mark.parametrize("name", MAKERS)
def test_with_the_error_term_nothing_changes_to_the_bit(name, site):
    model = make(name)
    if site not in model.sites:
        return
    wide = Shape(model.d_model, 30)
    saes = {(site, layer): dictionary("relu", wide) for layer in range(2)}
    pixels = pixels_for(model)
    output, latents = model.run_with_saes(pixels, saes, error_term=True)
    assert torch.equal(output, model(pixels))
    assert latents.keys() == saes.keys()
    assert not torch.equal(model.run_with_saes(pixels, saes)[0], output)


def test_a_perfect_dictionary_leaves_the_logits_as_they_are(vit, pixels):
    output, latents = vit.run_with_saes(pixels, {FIRST: Identity(), "full_embed": Identity()})
    assert torch.equal(output, vit(pixels))
    assert torch.equal(latents[FIRST], vit.read(pixels, ["resid_post"], [0])[FIRST])


def test_nothing_spliced_in_is_the_plain_run(vit, pixels):
    output, latents = vit.run_with_saes(pixels, {})
    assert torch.equal(output, vit(pixels)) and latents == {}


# --- against hooks by hand


def by_hand(sae: Autoencoder, chosen: slice = slice(None)) -> Any:
    def hook(value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        value[:, chosen] = sae(value[:, chosen])[1]
        return value

    return hook


@pytest.mark.parametrize("name", SETTINGS)
def test_two_at_once_are_two_hooks(vit, pixels, name):
    """The second reads what the first has made: its latents are of the spliced run."""
    first, second = dictionary(name, AUTOENCODER), dictionary("topk", AUTOENCODER)
    output, latents = vit.run_with_saes(pixels, {FIRST: first, "blocks.1.hook_resid_mid": second})
    expected = vit.run_with_hooks(pixels, {FIRST: by_hand(first), SECOND: by_hand(second)})
    assert torch.equal(output, expected)
    plain = vit.read(pixels, ["resid_mid"], [1])[SECOND]
    spliced = vit.read(pixels, ["resid_mid"], [1], {FIRST: by_hand(first)})[SECOND]
    assert torch.equal(latents[SECOND], second.encode(spliced))
    assert not torch.equal(latents[SECOND], second.encode(plain))


@pytest.mark.parametrize(("tokens", "chosen"), [("cls", slice(0, 1)), ("patch", slice(1, None))])
@pytest.mark.parametrize("error_term", [True, False])
def test_tokens_that_it_was_not_trained_on_are_left_as_they_are(vit, pixels, tokens, chosen, error_term):
    sae = dictionary("relu", AUTOENCODER)
    output, latents = vit.run_with_saes(pixels, {FIRST: Splice(sae, FIRST, FIRST, tokens)}, error_term)
    hooks = {} if error_term else {FIRST: by_hand(sae, chosen)}
    assert torch.equal(output, vit.run_with_hooks(pixels, hooks))
    assert latents[FIRST].shape == (3, 1 if tokens == "cls" else 4, 30)


def test_images_of_another_size_have_more_patches():
    model = make("dinov2")
    pixels = torch.rand(2, 2, 16, 12)
    splice = Splice(dictionary("relu", AUTOENCODER), FIRST, FIRST, "patch")
    _, latents = model.run_with_saes(pixels, {FIRST: splice})
    assert latents[FIRST].shape == (2, 4 * 3, 30)


@pytest.mark.parametrize("error_term", [True, False])
def test_a_transcoder_writes_its_target_from_its_input_in_the_same_run(vit, pixels, error_term):
    key, earlier = ("mlp_out", 1), dictionary("relu", AUTOENCODER)
    transcoder = dictionary("relu", TRANSCODER)
    splice = Splice(transcoder, ("ln2_out", 1), key)
    output, latents = vit.run_with_saes(pixels, {key: splice, FIRST: earlier}, error_term)
    before = {} if error_term else {FIRST: by_hand(earlier)}
    x = vit.read(pixels, ["ln2_out"], [1], before)["ln2_out", 1]
    torch.testing.assert_close(latents[key], transcoder.encode(x), rtol=0, atol=0)
    expected = before if error_term else {**before, key: lambda _: transcoder(x)[1]}
    assert torch.equal(output, vit.run_with_hooks(pixels, expected))


def test_a_transcoder_reads_what_an_autoencoder_made_of_its_input(vit, pixels):
    read, written = ("ln2_out", 1), ("mlp_out", 1)
    sae, transcoder = dictionary("topk", AUTOENCODER), dictionary("relu", TRANSCODER)
    _, latents = vit.run_with_saes(pixels, {written: Splice(transcoder, read, written), read: sae})
    made = sae(vit.read(pixels, ["ln2_out"], [1])[read])[1]
    assert torch.equal(latents[written], transcoder.encode(made))


def test_two_transcoders_read_the_same_site(vit, pixels):
    sae, read = dictionary("relu", TRANSCODER), ("resid_pre", 0)
    splices = {key: Splice(sae, read, key) for key in (("mlp_out", 0), ("resid_post", 1))}
    _, latents = vit.run_with_saes(pixels, splices)
    assert torch.equal(latents["mlp_out", 0], latents["resid_post", 1])


def test_a_transcoder_whose_input_is_not_run_is_refused(vit, pixels):
    read, written = ("resid_pre", 0), ("mlp_out", 1)
    stream = vit.read(pixels, ["resid_pre"], [1])["resid_pre", 1]
    with vit.saes({written: Splice(dictionary("relu", TRANSCODER), read, written)}):
        vit(pixels)
        with pytest.raises(SpliceError, match="reads resid_pre of layer 0, which this run does not pass"):
            vit.forward_from(1, stream)


def test_heads_are_read_side_by_side(vit, pixels):
    sae = dictionary("relu", AUTOENCODER)
    output, _ = vit.run_with_saes(pixels, {("z", 1): sae})
    expected = vit.run_with_hooks(pixels, {("z", 1): lambda z: sae(z.flatten(2))[1].unflatten(2, (3, 4))})
    assert torch.equal(output, expected)


# --- edits and gradients


def test_an_edited_latent_moves_the_site_along_its_decoder_row(vit, pixels):
    """Steering: with the error term, + c in latent 7 is + c times its row, and nothing else."""
    sae = dictionary("relu", AUTOENCODER)

    def steer(latents: torch.Tensor) -> torch.Tensor:
        latents[..., 7] += 2.0
        return latents

    output, latents = vit.run_with_saes(pixels, {FIRST: sae}, error_term=True, edits={FIRST: steer})
    expected = vit.run_with_hooks(pixels, {FIRST: lambda x: x + 2.0 * sae.W_dec[7]})
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)  # float32, sums in another order
    x = vit.read(pixels, ["resid_post"], [0])[FIRST]
    assert torch.equal(latents[FIRST], steer(sae.encode(x)))


@pytest.mark.parametrize(
    ("sites", "error_term"), [([FIRST], True), ([FIRST], False), ([FIRST, SECOND], False)]
)
def test_gradients_of_latents_are_finite_differences(vit, pixels, sites, error_term):
    """Of two dictionaries the error term of the later one would move along, which is none to gradients."""
    vit.model.double()
    saes, pixels, step = (
        {key: dictionary("relu", AUTOENCODER).double() for key in sites},
        pixels.double(),
        1e-6,
    )

    def logit(edit: Any) -> tuple[torch.Tensor, torch.Tensor]:
        output, latents = vit.run_with_saes(pixels, saes, error_term, {FIRST: edit})
        return output[0, 2], latents[FIRST]

    value, latents = logit(lambda latents: latents.requires_grad_())
    (gradient,) = torch.autograd.grad(value, latents)
    for token, latent in ((0, 3), (2, 11), (4, 29)):
        bump = torch.zeros_like(latents)
        bump[0, token, latent] = step
        up, down = (logit(lambda f, by=by: f + by)[0] for by in (bump, -bump))
        # float64: the quotient is off by 1e-16 / 1e-6, and by step² times a third derivative.
        slope = ((up - down) / (2 * step)).item()
        assert gradient[0, token, latent].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)
        assert abs(slope) > 1e-5


def test_the_error_term_is_a_constant_to_gradients(vit, pixels):
    """What flows back passes the latents alone, as with an error that is detached by hand."""
    sae, pixels = dictionary("relu", AUTOENCODER), pixels.requires_grad_()
    with_term, _ = vit.run_with_saes(pixels, {FIRST: sae}, error_term=True)

    def hook(value: torch.Tensor) -> torch.Tensor:
        made = sae(value)[1]
        return made + (value - made).detach()

    by_hand_too = vit.run_with_hooks(pixels, {FIRST: hook})
    gradients = [torch.autograd.grad(output[0, 2], pixels)[0] for output in (with_term, by_hand_too)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)  # float32, values that differ in the last digit
    (plain,) = torch.autograd.grad(vit(pixels)[0, 2], pixels)
    assert not torch.allclose(plain, gradients[0], atol=1e-3)


def test_a_dictionary_can_be_trained_in_its_model(vit, pixels):
    sae = dictionary("relu", AUTOENCODER).requires_grad_()
    vit.run_with_saes(pixels, {FIRST: sae})[0][:, 2].sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in (sae.W_enc, sae.W_dec, sae.b_dec))


def test_a_model_in_half_precision_takes_a_dictionary_in_float32(vit, pixels):
    vit.model.bfloat16()
    pixels = pixels.bfloat16()
    output, latents = vit.run_with_saes(pixels, {FIRST: dictionary("relu", AUTOENCODER)}, error_term=True)
    assert torch.equal(output, vit(pixels)) and latents[FIRST].dtype == torch.float32


# --- as a context


def test_dictionaries_stay_as_long_as_the_context_lasts(vit, pixels):
    sae, plain = dictionary("relu", AUTOENCODER), vit(pixels)
    with vit.saes({FIRST: sae}) as latents:
        assert torch.equal(vit.model(pixels).logits, vit.run_with_hooks(pixels, {}))
        assert not torch.equal(vit(pixels), plain)
        before = latents[FIRST]
        _, cache = vit.run_with_cache(pixels.flip(0), ["resid_post"], [0])
        assert torch.equal(cache[FIRST], sae.decode(latents[FIRST], cache[FIRST]))
        assert torch.equal(latents[FIRST], before.flip(0))
    assert torch.equal(vit(pixels), plain)


def test_nothing_is_left_on_the_model_when_something_fails(vit, pixels):
    plain = vit(pixels)

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="^no$"):
        vit.run_with_saes(pixels, {FIRST: dictionary("relu", AUTOENCODER)}, edits={FIRST: fail})
    with pytest.raises(KeyError), vit.saes({FIRST: dictionary("relu", AUTOENCODER)}):
        raise KeyError
    assert torch.equal(vit(pixels), plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vit.model.modules())


# --- from the store


def test_a_dictionary_of_the_store_knows_its_place(vit, pixels):
    sae = dictionary("batch_topk", AUTOENCODER)
    place = {"site": "resid_post", "layer": 0, "tokens": "patch"}
    splice = as_splice(dictionary_dataset(sae, {}, place))
    assert (splice.reads, splice.writes, splice.tokens) == (FIRST, FIRST, "patch")
    output, _ = vit.run_with_saes(pixels, {FIRST: splice})
    assert torch.equal(output, vit.run_with_hooks(pixels, {FIRST: by_hand(sae, slice(1, None))}))


@pytest.mark.parametrize("target_layer", [None, 1])
def test_a_transcoder_of_the_store_knows_both_its_places(target_layer):
    place = {"site": "ln2_out", "layer": 0, "target_site": "mlp_out", "tokens": "all"}
    given = place if target_layer is None else {**place, "target_layer": target_layer}
    splice = as_splice(dictionary_dataset(dictionary("relu", TRANSCODER), {}, given))
    assert (splice.reads, splice.writes) == (("ln2_out", 0), ("mlp_out", target_layer or 0))


# --- what does not fit


def spliced(**changes: Any) -> Splice:
    return Splice(
        **{"dictionary": dictionary("relu", AUTOENCODER), "reads": FIRST, "writes": FIRST, **changes}
    )


@pytest.mark.parametrize(
    ("saes", "message"),
    [
        (
            {FIRST: dictionary("relu", Shape(8, 24))},
            "is 8 → 8 wide, and resid_post of layer 0 of",
        ),
        (
            {SECOND: spliced()},
            "dictionary of resid_post of layer 0 belongs there, and not at resid_mid",
        ),
        (
            {FIRST: spliced(tokens="register")},
            "is of register tokens, and resid_post of layer 0 has only cls, patch",
        ),
        ({FIRST: dictionary("relu", Shape(12, 30, n_layers=2))}, "is a crosscoder"),
        ({FIRST: dictionary("relu", TRANSCODER)}, "say what it reads, with Splice"),
        ({FIRST: spliced(reads=SECOND)}, "reads resid_mid of layer 1, which comes later"),
        ({FIRST: spliced(reads=("embed", None))}, "embed has 4 of these tokens, resid_post of layer 0 5"),
        ({("pattern", 0): dictionary("relu", AUTOENCODER)}, "dictionaries take vectors of tokens"),
        ({"resid_post": dictionary("relu", AUTOENCODER)}, "'resid_post' names 2 sites: name one layer"),
    ],
)
def test_a_dictionary_that_does_not_fit_is_refused(vit, pixels, saes, message):
    with pytest.raises(SpliceError, match=message):
        vit.run_with_saes(pixels, saes)


def test_a_site_that_the_model_has_not_is_refused(vit, pixels):
    with pytest.raises(SiteError, match="no layer 9 at site 'resid_post': the model has layers 0 to 1"):
        vit.run_with_saes(pixels, {("resid_post", 9): Identity()})
    with pytest.raises(SiteError, match="no layer 9 at site 'resid_pre'"):
        splice = spliced(reads=("resid_pre", 9), writes=("ln_final", None))
        vit.run_with_saes(pixels, {"ln_final": splice})


def test_edits_that_do_not_fit_are_refused(vit, pixels):
    saes = {FIRST: dictionary("relu", AUTOENCODER)}
    with pytest.raises(SpliceError, match=r"no dictionary is spliced in at \('resid_mid', 1\)"):
        vit.run_with_saes(pixels, saes, edits={SECOND: lambda latents: latents})
    with pytest.raises(SpliceError, match=r"returned \(3, 5, 29\), expected \(3, 5, 30\): image"):
        vit.run_with_saes(pixels, saes, edits={FIRST: lambda latents: latents[..., 1:]})
