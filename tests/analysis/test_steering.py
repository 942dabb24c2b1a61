"""Steering against one run a cell with edited latents, against plain hooks, and identities that must hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from prisma_steps.analysis.steering import Steering, check_splice, steered_logits, steered_tokens, survey
from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.splicing import Splice, SpliceError
from prisma_steps.sae.autoencoder import Shape
from prisma_steps.step import StepError
from tests.models.families import make, pixels_for
from tests.sae.dictionaries import SETTINGS
from tests.sae.published import dictionary

# float32: batches of other sizes add in another order; without decoding there is one rounding less.
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 5e-5}
MANY = 1000
WIDTH = 12
LATENTS = (3, 11, 20)
AMOUNTS = torch.tensor([[0.0, 1.5], [-0.5, 4.0], [2.0, 0.25]])
MODES = ("clamp", "add", "multiply")


def splice_of(
    key: tuple[str, int | None] = ("resid_post", 0), tokens: str = "all", name: str = "relu", **shape: Any
) -> Splice:
    made = dictionary(name, Shape(WIDTH, 30, **shape), norm_factor=1.7, target_norm_factor=0.6)
    reads = ("ln2_out", key[1]) if "d_target" in shape else key
    return Splice(made, reads, key, tokens)


def sweep_of(
    model: HookedViT,
    splice: Splice,
    mode: Any = "add",
    tokens: str = "all",
    amounts: torch.Tensor = AMOUNTS,
    latents: tuple[int, ...] = LATENTS,
) -> Steering:
    return Steering(splice, steered_tokens(model, splice, tokens), torch.tensor(latents), mode, amounts)


def by_editing(model: HookedViT, pixels: torch.Tensor, sweep: Steering, tokens: list[int]) -> torch.Tensor:
    """Every cell as a run of its own with the dictionary spliced in; ``tokens`` among the dictionary's."""
    answers = []
    for latent, amounts in zip(sweep.latents.tolist(), sweep.amounts.tolist(), strict=True):
        for amount in amounts:

            def edit(latents: torch.Tensor, at: int = latent, amount: float = amount) -> torch.Tensor:
                edited = latents.clone()
                old = latents[:, tokens, at]
                new = {"clamp": torch.full_like(old, amount), "add": old + amount, "multiply": old * amount}
                edited[:, tokens, at] = new[sweep.mode]
                return edited

            key = sweep.splice.writes
            answers.append(model.run_with_saes(pixels, {key: sweep.splice}, True, {key: edit})[0])
    return torch.stack(answers).unflatten(0, sweep.amounts.shape)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("toy", ("resid_pre", 1)),
        ("toy", ("resid_mid", 0)),
        ("toy", ("resid_post", 1)),
        ("toy", ("embed", None)),
        ("toy", ("full_embed", None)),
        ("toy", ("ln_final", None)),
        ("toy", ("z", 1)),
        ("toy video", ("resid_post", 0)),
        ("dinov2_with_registers", ("attn_out", 1)),
        ("clip classifier", ("mlp_out", 0)),
        ("vivit", ("resid_post", 0)),
        ("timm", ("resid_post", 0)),
        ("toy mean, registers", ("ln_final", None)),
    ],
)
@torch.no_grad()
def test_every_cell_is_one_run_with_edited_latents(name: str, key: Any, mode: str) -> None:
    model = make(name)
    pixels = pixels_for(model, 3)
    splice = splice_of(key)
    sweep = sweep_of(model, splice, mode)
    found = steered_logits(model, pixels, sweep, rows=5)
    torch.testing.assert_close(found, by_editing(model, pixels, sweep, _all(sweep)), **CLOSE)
    moved = (found - model(pixels)).abs().amax((-1, -2))
    assert (moved > 1e-4).any(), "a test of nothing: no latent moves the logits"


def _all(sweep: Steering) -> list[int]:
    return list(range(len(sweep.tokens.in_latents)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("normalise", ["none", "expected_norm", "layer_norm", "token_norm"])
@pytest.mark.parametrize("name", SETTINGS)
@torch.no_grad()
def test_whatever_the_architecture_and_its_normalisation(name: str, normalise: Any, mode: str) -> None:
    model = make("toy")
    pixels = pixels_for(model, 2)
    sweep = sweep_of(model, splice_of(name=name, normalise=normalise), mode)
    found = steered_logits(model, pixels, sweep, MANY)
    torch.testing.assert_close(found, by_editing(model, pixels, sweep, _all(sweep)), **CLOSE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("normalise", ["none", "expected_norm", "layer_norm"])
@torch.no_grad()
def test_transcoders_move_what_they_write(normalise: Any, mode: str) -> None:
    model = make("toy")
    pixels = pixels_for(model, 2)
    shape = {"d_target": WIDTH, "skip": True, "subtract_b_dec": False, "normalise": normalise}
    sweep = sweep_of(model, splice_of(("mlp_out", 1), **shape), mode)
    found = steered_logits(model, pixels, sweep, MANY)
    torch.testing.assert_close(found, by_editing(model, pixels, sweep, _all(sweep)), **CLOSE)


@pytest.mark.parametrize(
    ("trained", "steered", "in_site", "in_latents"),
    [
        ("all", "all", [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
        ("all", "cls", [0], [0]),
        ("all", "patch", [1, 2, 3, 4], [1, 2, 3, 4]),
        ("patch", "all", [1, 2, 3, 4], [0, 1, 2, 3]),
        ("patch", "patch", [1, 2, 3, 4], [0, 1, 2, 3]),
        ("cls", "cls", [0], [0]),
    ],
)
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_chosen_tokens_of_those_that_the_dictionary_is_of(
    trained: str, steered: str, in_site: list[int], in_latents: list[int], mode: str
) -> None:
    model = make("toy")
    pixels = pixels_for(model, 2)
    sweep = sweep_of(model, splice_of(tokens=trained), mode, steered)
    assert [part.tolist() for part in sweep.tokens] == [in_site, in_latents]
    found = steered_logits(model, pixels, sweep, MANY)
    torch.testing.assert_close(found, by_editing(model, pixels, sweep, in_latents), **CLOSE)


@pytest.mark.parametrize("factor", [None, 2.5])
@torch.no_grad()
def test_adding_is_the_decoder_row_by_a_plain_hook(factor: float | None) -> None:
    """One unit of a dictionary that multiplies its input by a factor is the row divided by it."""
    model = make("vit")
    pixels = pixels_for(model, 2)
    shape = Shape(WIDTH, 30, normalise="none" if factor is None else "expected_norm")
    sae = dictionary("relu", shape, norm_factor=factor or 1.0)
    key = ("resid_mid", 0)
    sweep = sweep_of(model, Splice(sae, key, key))
    found = steered_logits(model, pixels, sweep, MANY)
    for latent, amounts, cells in zip(LATENTS, AMOUNTS.tolist(), found, strict=True):
        for amount, cell in zip(amounts, cells, strict=True):
            step = amount * sae.W_dec[latent] / (factor or 1.0)
            expected = model.run_with_hooks(pixels, {key: lambda value, step=step: value + step})
            torch.testing.assert_close(cell, expected, **CLOSE)


def firing(model: HookedViT, splice: Splice, pixels: torch.Tensor) -> tuple[int, ...]:
    """The three latents that fire most on these images."""
    found = survey(model, splice, steered_tokens(model, splice, "all"), [pixels])
    return tuple(found.mean.topk(3).indices.tolist())


@torch.no_grad()
def test_identities() -> None:
    """Clamping to 0 is multiplying by 0; adding 0, times 1, and clamping to the own value do nothing."""
    model = make("toy")
    pixels = pixels_for(model, 1)
    splice = splice_of(tokens="cls")
    latents = firing(model, splice, pixels)
    _, own = model.run_with_saes(pixels, {splice.writes: splice})
    at_cls = own[splice.writes][0, 0, list(latents)]
    assert (at_cls > 0.1).all()

    def cells(mode: str, amount: torch.Tensor) -> torch.Tensor:
        amounts = amount.expand(3)[:, None]
        return steered_logits(
            model, pixels, sweep_of(model, splice, mode, amounts=amounts, latents=latents), MANY
        )

    plain = model(pixels).expand(3, 1, -1, -1)
    zero, one = torch.zeros(()), torch.ones(())
    torch.testing.assert_close(cells("clamp", at_cls), plain, **CLOSE)
    torch.testing.assert_close(cells("multiply", one), plain, **CLOSE)
    torch.testing.assert_close(cells("add", zero), plain, **CLOSE)
    torch.testing.assert_close(cells("clamp", zero), cells("multiply", zero), **CLOSE)
    torch.testing.assert_close(cells("add", -at_cls), cells("clamp", zero), **CLOSE)
    assert (cells("clamp", zero) - plain).abs().amax((1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("rows", [1, 3, 8, MANY])
@torch.no_grad()
def test_batches_of_cells_do_not_change_them(rows: int) -> None:
    model = make("toy")
    pixels = pixels_for(model, 2)
    sweep = sweep_of(model, splice_of())
    found = steered_logits(model, pixels, sweep, rows)
    torch.testing.assert_close(found, steered_logits(model, pixels, sweep, MANY), **CLOSE)


@pytest.mark.parametrize(
    ("key", "start"), [(("resid_post", 0), 1), (("resid_mid", 1), 1), (("ln_final", None), 2)]
)
def test_only_what_comes_after_the_dictionary_runs(
    key: Any, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six cells of two images in runs of four: three runs, and one that reads the site."""
    model, started, run = make("toy"), [], []
    forward_from, plain = HookedViT.forward_from, HookedViT._as_pixels

    def watched(self: HookedViT, layer: int, *args: Any, **kwargs: Any) -> torch.Tensor:
        started.append(layer)
        return forward_from(self, layer, *args, **kwargs)

    def from_pixels(self: HookedViT, pixels: Any) -> torch.Tensor:
        run.append(len(pixels))
        return plain(self, pixels)

    monkeypatch.setattr(HookedViT, "forward_from", watched)
    monkeypatch.setattr(HookedViT, "_as_pixels", from_pixels)
    steered_logits(model, pixels_for(model, 2), sweep_of(model, splice_of(key)), rows=4)
    assert (started, run) == ([start] * 3, [2])


@torch.no_grad()
def test_a_model_made_for_inference_steers_alike() -> None:
    model = make("clip classifier")
    pixels = pixels_for(model, 2)
    sweep = sweep_of(model, splice_of())
    found = steered_logits(model.for_inference(), pixels, sweep, MANY)
    torch.testing.assert_close(found, steered_logits(model, pixels, sweep, MANY), **CLOSE)


def test_a_survey_is_of_all_images_and_of_the_steered_tokens() -> None:
    model = make("toy")
    pixels, splice = pixels_for(model, 5), splice_of()
    tokens = steered_tokens(model, splice, "patch")
    found = survey(model, splice, tokens, pixels.split(2))
    with torch.no_grad():
        x = model.read(pixels, ["resid_post"], [0])["resid_post", 0][:, 1:]
        latents = splice.dictionary.encode(x).flatten(0, 1)
    torch.testing.assert_close(found.highest, latents.amax(0), **CLOSE)
    torch.testing.assert_close(found.mean, latents.double().mean(0), **CLOSE)
    assert found.mean.dtype == torch.float64 and found.attribution is None


def test_attribution_is_what_a_little_less_of_a_latent_takes_from_the_logit() -> None:
    """In float64: (1 − ε) times the latent, divided by ε, to first order."""
    model = make("toy", torch.float64)
    pixels = pixels_for(model, 3)
    given = splice_of()
    splice = replace(given, dictionary=given.dictionary.double())
    tokens = steered_tokens(model, splice, "patch")
    found = survey(model, splice, tokens, pixels.split(2), of_class=2)
    assert found.attribution is not None
    step, latents = 1e-5, tuple(found.attribution.abs().topk(4).indices.tolist())
    amounts = torch.full((4, 1), 1 - step, dtype=torch.float64)
    with torch.no_grad():
        sweep = sweep_of(model, splice, "multiply", "patch", amounts, latents)
        steered = steered_logits(model, pixels, sweep, MANY)[:, 0, :, 2].mean(1)
        lost = (model(pixels)[:, 2].mean() - steered) / step
    # The quotient is off by 1e-16 / 1e-5 and by a second derivative times the step.
    torch.testing.assert_close(found.attribution[list(latents)], lost, rtol=1e-3, atol=1e-6)
    plain = survey(model, splice, tokens, [pixels])
    torch.testing.assert_close(found.mean, plain.mean)
    torch.testing.assert_close(found.highest, plain.highest)


# --- what does not fit


@pytest.mark.parametrize(
    ("trained", "steered", "message"),
    [
        ("patch", "cls", r"tokens is 'cls', and the dictionary is of patch tokens \(here: patch\)"),
        ("cls", "patch", r"tokens is 'patch', and the dictionary is of cls tokens \(here: cls\)"),
        (
            "all",
            "register",
            r"tokens is 'register', and the dictionary is of all tokens \(here: cls, patch\)",
        ),
        ("register", "all", "none that this site has"),
    ],
)
def test_tokens_that_the_dictionary_was_not_trained_on(trained: str, steered: str, message: str) -> None:
    with pytest.raises(StepError, match=message):
        steered_tokens(make("toy"), splice_of(tokens=trained), steered)


def test_dictionaries_that_do_not_fit_are_refused() -> None:
    model = make("toy")
    with pytest.raises(SpliceError, match="is a crosscoder"):
        check_splice(model, splice_of(n_layers=2))
    with pytest.raises(StepError, match="does not belong to this model: no layer 7"):
        check_splice(model, splice_of(("resid_post", 7)))
    wide = Splice(dictionary("relu", Shape(8, 30)), ("resid_post", 0), ("resid_post", 0))
    assert check_splice(model, wide) is wide.dictionary
    tokens = steered_tokens(model, wide, "all")
    with pytest.raises(SpliceError, match="is 8 → 8 wide, and resid_post of layer 0 of this model 12"):
        survey(model, wide, tokens, [pixels_for(model)])
