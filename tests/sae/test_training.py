"""Training: planted dictionaries are found, dead latents revived, divergence named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from prisma_steps.sae.architectures import architecture
from prisma_steps.sae.autoencoder import Autoencoder
from prisma_steps.sae.initialisation import expected_norm_factor, mean_token
from prisma_steps.sae.training import Recipe, Trainer, TrainingDiverged

RECIPE = Recipe(
    n_tokens=200_000,
    batch_size=256,
    learning_rate=3e-3,
    learning_rate_warmup=0.05,
    learning_rate_decay=0.2,
    sparsity_warmup=0.1,
    dead_after=5_000,
    seed=0,
)
SETTINGS = {"relu": {"l1_coefficient": 1.0}, "topk": {"k": 3, "aux_k_coefficient": 1 / 32}}


def untrained(name: str, tokens: torch.Tensor, n_latents: int, seed: int = 0) -> Autoencoder:
    autoencoder = architecture(name)(tokens.shape[1], n_latents, **SETTINGS[name])
    factor = expected_norm_factor(tokens)
    autoencoder.initialise(mean_token(tokens) * factor, factor, torch.Generator().manual_seed(seed))
    return autoencoder


def train(autoencoder: Autoencoder, tokens: torch.Tensor, recipe: Recipe) -> Trainer:
    trainer = Trainer(autoencoder, tokens, recipe)
    while trainer.steps_done < trainer.n_steps:
        trainer.advance()
    return trainer


def nearest_cosine(rows: np.ndarray, others: np.ndarray) -> float:
    """Mean over ``rows`` of the cosine to the nearest of ``others``, all of unit norm."""
    return (rows @ others.T).max(1).mean()


@pytest.mark.parametrize("name", ["relu", "topk"])
def test_a_planted_dictionary_is_found_whatever_the_seed(planted, name):
    found = []
    for seed in (0, 1):
        autoencoder = untrained(name, planted.tokens, 96, seed)
        train(autoencoder, planted.tokens, replace(RECIPE, seed=seed))
        found.append(autoencoder.W_dec.detach().numpy())
    for rows in found:
        assert nearest_cosine(planted.directions, rows) > 0.95
    matched = [rows[(planted.directions @ rows.T).argmax(1)] for rows in found]
    assert (matched[0] * matched[1]).sum(1).mean() > 0.95


def test_aux_k_revives_latents_killed_on_purpose(planted):
    """Half of the latents start far below zero on every token; without AuxK they get no gradient at all."""
    alive = {}
    for coefficient in (0.0, 1 / 32):
        autoencoder = untrained("topk", planted.tokens, 96)
        autoencoder.aux_k_coefficient = coefficient
        with torch.no_grad():
            autoencoder.b_enc[:48] = -3.0
        train(autoencoder, planted.tokens, RECIPE)
        fires = (autoencoder.encode(planted.tokens)[:, :48] > 0).any(0)
        alive[coefficient] = fires.float().mean().item()
    assert alive[0.0] == 0.0
    assert alive[1 / 32] > 0.5


def test_history_is_that_of_the_batches_served(planted):
    """FVU and L0 of the first step, from the untrained weights and the first batch."""
    trainer = Trainer(untrained("relu", planted.tokens, 64), planted.tokens, RECIPE)
    before = untrained("relu", planted.tokens, 64)
    trainer.advance()
    batch = planted.tokens[trainer.order.batch(0)].double()
    before.double()
    latents = before.encode(batch)
    error = (batch - before.decode(latents)).square().sum().item()
    scatter = (batch - planted.tokens.double().mean(0)).square().sum().item()
    assert trainer.history["fvu"] == [pytest.approx(error / scatter, rel=1e-5)]
    assert trainer.history["l0"] == [(latents > 0).sum().item() / len(batch)]
    assert trainer.history["tokens_seen"] == [len(batch)]


def test_history_covers_the_run_and_ends_with_it(planted):
    trainer = train(untrained("relu", planted.tokens, 64), planted.tokens, RECIPE)
    steps = trainer.history["step"]
    assert steps[0] == 1
    assert steps[-1] == trainer.n_steps
    assert 100 <= len(steps) <= 202
    assert {len(values) for values in trainer.history.values()} == {len(steps)}
    assert trainer.history["tokens_seen"][-1] == RECIPE.n_tokens


def test_schedules_rise_stay_and_fall(planted):
    """10 % warm-up, 20 % decay of 100 steps; the penalty rises over half of them."""
    recipe = replace(
        RECIPE,
        n_tokens=10_000,
        batch_size=100,
        learning_rate_warmup=0.1,
        learning_rate_decay=0.2,
        sparsity_warmup=0.5,
    )
    trainer = Trainer(untrained("relu", planted.tokens, 32), planted.tokens, recipe)
    scales = []
    objective = trainer.autoencoder.objective

    def spy(x, sparsity_scale, dead):
        scales.append(sparsity_scale)
        return objective(x, sparsity_scale, dead)

    trainer.autoencoder.objective = spy
    while trainer.steps_done < trainer.n_steps:
        trainer.advance()
    rates = np.array(trainer.history["learning_rate"]) / recipe.learning_rate
    expected = np.minimum(np.minimum(np.arange(1, 101) / 10, 1), np.arange(100, 0, -1) / 20)
    np.testing.assert_allclose(rates, expected)
    np.testing.assert_allclose(scales, np.minimum(np.arange(1, 101) / 50, 1))


def test_dead_latents_are_those_silent_for_the_window(planted):
    """A latent held far below zero is dead after ``dead_after`` tokens and not before."""
    recipe = replace(RECIPE, n_tokens=2_000, batch_size=100, dead_after=1_000)
    autoencoder = untrained("relu", planted.tokens, 32)
    with torch.no_grad():
        autoencoder.b_enc[:5] = -100.0
    history = train(autoencoder, planted.tokens, recipe).history
    assert history["dead_latents"] == [0] * 9 + [5] * 11


def test_decoder_rows_stay_unit(planted):
    for name in ("relu", "topk"):
        autoencoder = untrained(name, planted.tokens, 64)
        train(autoencoder, planted.tokens, replace(RECIPE, n_tokens=5_000))
        torch.testing.assert_close(autoencoder.W_dec.norm(dim=1), torch.ones(64))


def test_moments_hold_nothing_along_the_decoder_rows(planted):
    trainer = Trainer(untrained("relu", planted.tokens, 64), planted.tokens, RECIPE)
    rows = trainer.autoencoder.W_dec.detach().clone()
    trainer.advance()
    moment = trainer.state()["optimiser"]["state"][1]["exp_avg"]
    assert moment.shape == rows.shape
    assert moment.norm() > 1e-3
    assert (moment * rows).sum(1).abs().max() < 1e-6 * moment.norm()


def test_each_token_of_the_table_is_served_once_an_epoch():
    """Rows that hold their own number come out once each."""
    tokens = torch.arange(1.0, 31)[:, None] * torch.ones(4)
    trainer = Trainer(untrained("relu", tokens, 8), tokens, replace(RECIPE, n_tokens=30, batch_size=7))
    served = []
    objective = trainer.autoencoder.objective

    def spy(x, sparsity_scale, dead):
        served.extend((x[:, 0] / trainer.autoencoder.norm_factor).round().int().tolist())
        return objective(x, sparsity_scale, dead)

    trainer.autoencoder.objective = spy
    while trainer.steps_done < trainer.n_steps:
        trainer.advance()
    assert sorted(served) == list(range(1, 31))


def test_nan_names_the_step_and_the_activations(planted):
    tokens = planted.tokens.clone()
    trainer = Trainer(untrained("relu", tokens, 32), tokens, RECIPE)
    tokens[trainer.order.batch(7)[0], 0] = float("nan")
    with pytest.raises(TrainingDiverged, match=r"at optimiser step 7 of \d+: the activations themselves"):
        while True:
            trainer.advance()


def test_divergence_names_the_step_and_the_learning_rate(planted):
    recipe = replace(RECIPE, learning_rate=1e3, learning_rate_warmup=0.0)
    trainer = Trainer(untrained("relu", planted.tokens, 32), planted.tokens, recipe)
    with pytest.raises(TrainingDiverged, match=r"optimiser step \d+ of .*learning_rate = 1000 is too high"):
        while trainer.steps_done < trainer.n_steps:
            trainer.advance()
