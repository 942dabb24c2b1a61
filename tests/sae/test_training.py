"""Training: planted dictionaries are found, dead latents revived, divergence named."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from prisma_steps.sae.architectures import architecture
from prisma_steps.sae.autoencoder import Autoencoder, Shape
from prisma_steps.sae.initialisation import Sample
from prisma_steps.sae.resampling import resample
from prisma_steps.sae.training import Recipe, Trainer, TrainingDiverged
from prisma_steps.seeding import torch_generator
from tests.sae.dictionaries import batch, make

BATCH = 256
RECIPE = Recipe(
    n_steps=782,
    learning_rate=3e-3,
    learning_rate_warmup=0.05,
    learning_rate_decay=0.2,
    sparsity_warmup=0.1,
    dead_after=5_000,
)
SETTINGS = {
    "relu": {"l1_coefficient": 1.0},
    "gated": {"l1_coefficient": 2.0},
    "topk": {"k": 3},
    "batch_topk": {"k": 3},
    "jumprelu": {"l0_coefficient": 0.3, "bandwidth": 1.5},
    "matryoshka": {"k": 3, "prefixes": [0.5, 1.0]},
}


def start(name: str, tokens: torch.Tensor, n_latents: int, seed: int = 0) -> tuple[Autoencoder, torch.Tensor]:
    """An untrained dictionary, and the mean of the normalised tokens."""
    sae = architecture(name)(Shape(tokens.shape[1], n_latents, normalise="expected_norm"), **SETTINGS[name])
    return sae, Sample(tokens).start(sae, "mean", seed)


def batches(tokens: torch.Tensor, size: int = BATCH, seed: int = 0) -> Iterator[torch.Tensor]:
    """Epoch after epoch, shuffled."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from tokens[torch.randperm(len(tokens), generator=generator)].split(size)


def train(trainer: Trainer, tokens: torch.Tensor, size: int = BATCH, seed: int = 0) -> Trainer:
    served = batches(tokens, size, seed)
    while trainer.steps_done < trainer.recipe.n_steps:
        x = next(served)
        trainer.advance(x, x)
    return trainer


def trained(name: str, tokens: torch.Tensor, n_latents: int, recipe: Recipe, seed: int = 0) -> Autoencoder:
    sae, mean = start(name, tokens, n_latents, seed)
    return train(Trainer(sae, recipe, mean), tokens, seed=seed).autoencoder


def nearest_cosine(rows: np.ndarray, others: np.ndarray) -> float:
    """Mean over ``rows`` of the cosine to the nearest of ``others``, all of unit norm."""
    return (rows @ others.T).max(1).mean()


@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_planted_dictionary_is_found_whatever_the_seed(planted, name):
    found = []
    for seed in (0, 1):
        sae = trained(name, planted.tokens, 96, RECIPE, seed)
        found.append(sae.W_dec.detach().numpy())
    for rows in found:
        assert nearest_cosine(planted.directions, rows) > 0.95
    matched = [rows[(planted.directions @ rows.T).argmax(1)] for rows in found]
    assert (matched[0] * matched[1]).sum(1).mean() > 0.95


def test_bfloat16_finds_the_planted_dictionary_too(planted):
    for name in SETTINGS:
        sae = trained(name, planted.tokens, 96, replace(RECIPE, compute_dtype="bfloat16"))
        assert nearest_cosine(planted.directions, sae.W_dec.detach().numpy()) > 0.95, name


def fit(sae: Autoencoder, x: torch.Tensor, y: torch.Tensor, recipe: Recipe) -> None:
    """Initialise and train on pairs of inputs and targets."""
    trainer = Trainer(sae, recipe, Sample(x, y).start(sae, "mean", 0))
    served = batches(torch.arange(len(x)))
    while trainer.steps_done < recipe.n_steps:
        rows = next(served)
        trainer.advance(x[rows], y[rows])


@pytest.mark.parametrize("kind", ["transcoder", "crosscoder"])
def test_planted_directions_are_found_by_transcoders_and_crosscoders(planted, kind):
    """What is read and what is written are two maps of the same codes; of both the directions are found."""
    other = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(5))).Q
    x, y = planted.tokens, planted.tokens @ other
    shape = Shape(32, 96, d_target=32, normalise="expected_norm")
    if kind == "crosscoder":
        x = y = torch.cat([x, y], dim=1)
        shape = Shape(32, 96, n_layers=2, normalise="expected_norm")
    sae = architecture("topk")(shape, k=3)
    fit(sae, x, y, replace(RECIPE, n_steps=1_500))
    written = planted.directions @ other.numpy()
    expected = [written] if kind == "transcoder" else [planted.directions, written]
    for directions, rows in zip(expected, sae.W_dec.detach().unflatten(1, (-1, 32)).unbind(1), strict=True):
        assert nearest_cosine(directions, torch.nn.functional.normalize(rows, dim=1).numpy()) > 0.95


def test_a_skip_learns_what_is_linear(planted):
    """Targets that are a linear map of the inputs are predicted by the skip alone."""
    linear = torch.randn(32, 5, generator=torch.Generator().manual_seed(5))
    x = planted.tokens
    y = x @ linear
    fvu = {}
    for skip in (False, True):
        sae = architecture("topk")(Shape(32, 40, d_target=5, skip=skip, normalise="expected_norm"), k=1)
        fit(sae, x, y, RECIPE)
        fvu[skip] = (sae(x)[1] - y).square().sum().item() / (y - y.mean(0)).square().sum().item()
    assert fvu[True] < 0.01 < fvu[False]


def killed(name: str, tokens: torch.Tensor) -> tuple[Autoencoder, torch.Tensor]:
    """Half of the latents far below zero on every token."""
    sae, mean = start(name, tokens, 96)
    with torch.no_grad():
        sae.encoder_bias[:48] = -3.0
        if name == "relu":
            sae.encoder_bias[:48] = -30.0
    return sae, mean


def share_revived(trainer: Trainer, tokens: torch.Tensor) -> float:
    train(trainer, tokens)
    return (trainer.autoencoder.encode(tokens)[:, :48] > 0).any(0).float().mean().item()


@pytest.mark.parametrize("name", ["topk", "batch_topk", "matryoshka"])
def test_aux_k_revives_latents_killed_on_purpose(planted, name):
    """Without AuxK they get no gradient at all."""
    alive = {}
    for coefficient in (0.0, 1 / 32):
        sae, mean = killed(name, planted.tokens)
        sae.aux_k_coefficient = coefficient
        alive[coefficient] = share_revived(Trainer(sae, RECIPE, mean), planted.tokens)
    assert alive[0.0] == 0.0
    assert alive[1 / 32] > 0.5


@pytest.mark.parametrize("name", ["relu", "topk"])
def test_resampling_revives_latents_killed_on_purpose(planted, name):
    alive = {}
    for resamples in (False, True):
        sae, mean = killed(name, planted.tokens)
        sae.aux_k_coefficient = 0.0
        trainer = Trainer(sae, replace(RECIPE, resamples=resamples), mean)
        alive[resamples] = share_revived(trainer, planted.tokens)
    assert alive[False] == 0.0
    assert alive[True] > 0.5


def test_resampled_latents_point_at_tokens_that_were_reconstructed_badly():
    sae = make("relu")
    x, _ = batch(sae, 50)
    x[17] *= 30
    dead = torch.zeros(10, dtype=torch.bool)
    dead[4] = True
    living = sae.W_enc.detach().T[~dead].norm(dim=1).mean()
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    assert resample(sae, x, x, dead, torch.Generator().manual_seed(0)).tolist() == [4]
    away = torch.nn.functional.normalize(x[17] - sae.b_dec, dim=0)
    torch.testing.assert_close(sae.W_dec[4], away)
    torch.testing.assert_close(sae.W_enc[:, 4], away * 0.2 * living)
    assert sae.b_enc[4] == 0
    others = ~dead
    assert torch.equal(sae.W_dec[others], before["W_dec"][others])
    assert torch.equal(sae.W_enc[:, others], before["W_enc"][:, others])


def test_history_is_that_of_the_batches_served(planted):
    """FVU and L0 of the first step, from the untrained weights and the first batch."""
    sae, mean = start("relu", planted.tokens, 64)
    trainer = Trainer(sae, RECIPE, mean)
    before, _ = start("relu", planted.tokens, 64)
    x = planted.tokens[:100]
    trainer.advance(x, x)
    before.double()
    latents, x_hat = before(x.double())
    error = (x.double() - x_hat).square().sum().item()
    scatter = (x.double() - planted.tokens.double().mean(0)).square().sum().item()
    assert trainer.history["fvu"] == [pytest.approx(error / scatter, rel=1e-5)]
    assert trainer.history["l0"] == [(latents > 0).sum().item() / 100]
    assert trainer.history["tokens_seen"] == [100]


def test_history_covers_the_run_and_ends_with_it(planted):
    sae, mean = start("relu", planted.tokens, 64)
    trainer = train(Trainer(sae, RECIPE, mean), planted.tokens)
    steps = trainer.history["step"]
    assert steps[0] == 1
    assert steps[-1] == RECIPE.n_steps
    assert 100 <= len(steps) <= 202
    assert {len(values) for values in trainer.history.values()} == {len(steps)}


def test_schedules_rise_stay_and_fall(planted):
    """10 % warm-up, 20 % decay of 100 steps; the penalty rises over half of them."""
    recipe = replace(
        RECIPE, n_steps=100, learning_rate_warmup=0.1, learning_rate_decay=0.2, sparsity_warmup=0.5
    )
    sae, mean = start("relu", planted.tokens, 32)
    sae.l1_coefficient = 7.0
    trainer = Trainer(sae, recipe, mean)
    penalties = []
    served = batches(planted.tokens, 100)
    while trainer.steps_done < 100:
        x = next(served)
        full = 7.0 * sae.encode(x).sum(1).mean().item()
        trainer.advance(x, x)
        penalties.append(trainer.history["sparsity_loss"][-1] / full)
    rates = np.array(trainer.history["learning_rate"]) / recipe.learning_rate
    expected = np.minimum(np.minimum(np.arange(1, 101) / 10, 1), np.arange(100, 0, -1) / 20)
    np.testing.assert_allclose(rates, expected)
    # The penalty is a sum in float32.
    np.testing.assert_allclose(penalties, np.minimum(np.arange(1, 101) / 50, 1), rtol=1e-4)


def test_dead_latents_are_those_silent_for_the_window(planted):
    """A latent held far below zero is dead after ``dead_after`` tokens and not before."""
    sae, mean = start("relu", planted.tokens, 32)
    with torch.no_grad():
        sae.b_enc[:5] = -100.0
    trainer = Trainer(sae, replace(RECIPE, n_steps=20, dead_after=1_000), mean)
    assert train(trainer, planted.tokens, 100).history["dead_latents"] == [0] * 9 + [5] * 11


def test_decoder_rows_stay_unit(planted):
    for name in SETTINGS:
        sae = trained(name, planted.tokens, 64, replace(RECIPE, n_steps=20))
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64))


@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_run_goes_on_from_a_state_bit_for_bit(planted, name):
    recipe = replace(RECIPE, n_steps=30, dead_after=600, resamples=True)

    def fresh() -> Trainer:
        sae, mean = start(name, planted.tokens, 64)
        with torch.no_grad():
            sae.encoder_bias[:9] = -30.0
        return Trainer(sae, recipe, mean)

    undisturbed = train(fresh(), planted.tokens)
    first, served, state = fresh(), batches(planted.tokens), {}
    for step in range(30):
        if step == 11:
            state = torch.load(_saved(first.state()), weights_only=True)
            first = fresh()
            first.restore(state)
        x = next(served)
        first.advance(x, x)
    assert first.history == undisturbed.history
    for key, value in undisturbed.autoencoder.state_dict().items():
        assert torch.equal(first.autoencoder.state_dict()[key], value), key


def _saved(state: dict) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_nan_names_the_step_and_the_activations(planted):
    sae, mean = start("relu", planted.tokens, 32)
    trainer = Trainer(sae, RECIPE, mean)
    served = batches(planted.tokens)
    for _ in range(7):
        x = next(served)
        trainer.advance(x, x)
    x = next(served)
    x[3, 0] = float("nan")
    with pytest.raises(TrainingDiverged, match=r"at optimiser step 7 of \d+: the activations themselves"):
        trainer.advance(x, x)


def test_divergence_names_the_step_and_the_learning_rate(planted):
    sae, mean = start("relu", planted.tokens, 32)
    trainer = Trainer(sae, replace(RECIPE, learning_rate=1e3, learning_rate_warmup=0.0), mean)
    with pytest.raises(TrainingDiverged, match=r"optimiser step \d+ of .*learning_rate = 1000 is too high"):
        train(trainer, planted.tokens)


def test_the_seed_of_the_directions_is_that_of_the_dictionary(planted):
    sae, _ = start("relu", planted.tokens, 32, seed=3)
    directions = torch.randn(32, 32, generator=torch_generator(3, "sae/directions"))
    torch.testing.assert_close(sae.W_dec, torch.nn.functional.normalize(directions, dim=1))
