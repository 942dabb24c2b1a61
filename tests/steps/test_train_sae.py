from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from pydantic import ValidationError

from prisma_steps.job import Job, Member
from prisma_steps.sae.architectures import architecture
from prisma_steps.sae.autoencoder import registered
from prisma_steps.sae.labelled import load_dictionary
from prisma_steps.sae.training import TrainingDiverged
from prisma_steps.schema import MEANINGS, Dictionary, check
from prisma_steps.step import StepError, load_step, may_differ
from prisma_steps.steps.train_sae import Params, train_sae, train_together

N_IMAGES, N_TOKENS, D_MODEL = 60, 5, 8


@pytest.fixture(scope="module")
def activations() -> xr.Dataset:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((N_IMAGES, 2, N_TOKENS, D_MODEL)).astype(np.float32)
    return xr.Dataset(
        {
            "resid_post": (("image", "layer", "token", "d_model"), values + 1),
            "attn_out": (("image", "layer", "token", "d_model"), values - 1),
            "ln_final": (("image", "token", "d_model"), 3 * values[:, 0]),
            "pattern": (
                ("image", "layer", "head", "query_token", "key_token"),
                np.zeros((N_IMAGES, 2, 1, N_TOKENS, N_TOKENS)),
            ),
        },
        coords={
            "image": [f"image-{number}" for number in range(N_IMAGES)],
            "layer": [1, 3],
            "token_kind": ("token", np.array(["cls"] + ["patch"] * (N_TOKENS - 1))),
        },
    )


def params(**changes) -> Params:
    small = {"expansion": 2, "k": 3, "prefixes": [0.5, 1.0], "batch_size": 32, "epochs": 3}
    return Params(**{"site": "resid_post", **small, **changes})


class Interrupted(Exception):
    pass


def interrupted_job(tmp_path, at: int) -> Job:
    """A job that dies after optimiser step ``at``, with a checkpoint after every step."""

    def report(done, _total, _note):
        if done == at:
            raise Interrupted

    return Job(scratch=tmp_path, checkpoint_every=0.0, report=report)


ARCHITECTURES = ["relu", "gated", "topk", "batch_topk", "jumprelu", "matryoshka"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_run_killed_again_and_again_leaves_the_same_bytes(activations, tmp_path, architecture):
    """Weights, moments, dead counters (the window is short), order and history all survive."""
    sparse = {"k": 1, "l1_coefficient": 100.0, "bandwidth": 10.0}
    settings = params(architecture=architecture, dead_after=31, learning_rate=0.02, **sparse)
    undisturbed = train_sae(activations, settings, Job())
    for at in (1, 4, 9, 10, 17):
        with pytest.raises(Interrupted):
            train_sae(activations, settings, interrupted_job(tmp_path, at))
    resumed = train_sae(activations, settings, Job(scratch=tmp_path))
    xr.testing.assert_identical(resumed, undisturbed)
    assert undisturbed["dead_latents"].max() > 0


def test_a_resumed_run_repeats_no_step(activations, tmp_path):
    with pytest.raises(Interrupted):
        train_sae(activations, params(), interrupted_job(tmp_path, 9))
    done = []
    train_sae(activations, params(), Job(scratch=tmp_path, report=lambda step, *_: done.append(step)))
    assert done == list(range(10, 31))


def test_the_same_seed_leaves_the_same_bytes_and_another_does_not(activations):
    first, again, other = (train_sae(activations, params(seed=seed), Job()) for seed in (0, 0, 1))
    xr.testing.assert_identical(first, again)
    assert not np.array_equal(first["W_dec"], other["W_dec"])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_result_is_a_labelled_dictionary(activations, name):
    data = train_sae(activations, params(architecture=name, layer=1, tokens="patch"), Job())
    check(data, Dictionary)
    assert data.sizes["latent"] == 2 * D_MODEL
    expected = {"architecture": name, "site": "resid_post", "layer": 1, "tokens": "patch"}
    assert expected.items() <= data.attrs.items()
    assert all({"long_name", "units"} <= set(variable.attrs) for variable in data.variables.values())
    assert data["tokens_seen"].values[-1] == 3 * N_IMAGES * (N_TOKENS - 1)


def test_tokens_are_those_that_were_stored(activations):
    """Trained on all tokens of activations that hold CLS alone, a dictionary is one of CLS."""
    stored = activations.isel(token=[0])
    data = train_sae(stored, params(epochs=1), Job())
    assert data.attrs["tokens"] == "cls"
    assert data["tokens_seen"].values[-1] == N_IMAGES


def test_b_dec_starts_at_the_centre_of_what_the_autoencoder_sees(activations):
    """With a learning rate of next to nothing, b_dec stays at the mean of the *normalised* activations."""
    settings = params(b_dec_init="mean", learning_rate=1e-12, tokens="patch")
    data = train_sae(activations, settings, Job())
    rows = activations["resid_post"].sel(layer=3).values[:, 1:].reshape(-1, D_MODEL).astype(np.float64)
    factor = np.sqrt(D_MODEL) / np.linalg.norm(rows, axis=1).mean()
    assert data["norm_factor"].item() == pytest.approx(factor, rel=1e-6)
    np.testing.assert_allclose(data["b_dec"], factor * rows.mean(0), rtol=1e-5)


def test_without_normalisation_the_factor_is_one(activations):
    assert train_sae(activations, params(normalise="none", epochs=1), Job())["norm_factor"] == 1


def test_a_budget_in_tokens_is_kept_exactly(activations):
    data = train_sae(activations, params(n_tokens=500), Job())
    assert data["tokens_seen"].values[-1] == 500


def test_the_last_layer_is_the_last_stored(activations):
    last = train_sae(activations, params(epochs=1), Job())
    xr.testing.assert_identical(last, train_sae(activations, params(epochs=1, layer=3), Job()))


def test_the_only_site_needs_no_name(activations):
    only = activations[["attn_out"]]
    assert train_sae(only, params(site=None, epochs=1), Job()).attrs["site"] == "attn_out"


def test_a_site_without_layer_has_none(activations):
    data = train_sae(activations, params(site="ln_final", epochs=1), Job())
    assert "layer" not in data.attrs


def test_half_precision_activations_are_trained_on_in_single(activations):
    half = activations.assign(resid_post=activations["resid_post"].astype(np.float16))
    assert train_sae(half, params(epochs=1), Job())["W_dec"].dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"site": None},
            "several sites are stored: set site to one of resid_post, attn_out, ln_final",
        ),
        ({"site": "mlp_out"}, "site 'mlp_out' is not stored: set site to one of resid_post"),
        ({"site": "pattern"}, "site 'pattern' has dims .* a dictionary needs one vector a token"),
        ({"layer": 2}, r"layer 2 of 'resid_post' is not stored: set layer to one or several of \[1, 3\]"),
        ({"site": "ln_final", "layer": 1}, "'ln_final' exists once, not once a layer: leave layer out"),
        ({"layer": [1, 2]}, r"layer 2 of 'resid_post' is not stored"),
        ({"layer": [1]}, "a crosscoder needs several layers: set layer to 1"),
        ({"layer": []}, r"layer is \[\]: set layer to one or several of \[1, 3\]"),
        ({"layer": [1, 1]}, r"layer is \[1, 1\]: set layer to one or several of"),
        ({"layer": [1, 3], "target_site": "attn_out"}, "a crosscoder of several layers has no target_site"),
        ({"target_site": "mlp_out"}, "site 'mlp_out' is not stored: set target_site to one of"),
        ({"skip": True}, "skip adds a linear map to a transcoder: set target_site"),
        (
            {"architecture": "matryoshka", "prefixes": [0.5]},
            "must grow, from 1 latent or more to all of them",
        ),
        ({"k": 17}, "k = 17 is more than the dictionary's 16 latents"),
        ({"learning_rate": 1e6, "epochs": 20}, "optimiser step .*learning_rate = 1e.06 is too high"),
    ],
)
def test_mistakes_are_named(activations, changes, message):
    with pytest.raises(StepError, match=message):
        train_sae(activations, params(**changes), Job())


@pytest.mark.parametrize("wrong", [{"architecture": "gatd"}, {"k": 0}, {"l1_coefficient": -1.0}, {"kk": 3}])
def test_wrong_parameters_are_refused_before_anything_runs(wrong):
    with pytest.raises(ValidationError):
        Params(**wrong)


#: Neurons are what they are.
TRAINED = registered().keys() - {"neurons"}


def test_the_architectures_offered_are_those_registered():
    offered = Params.model_json_schema()["properties"]["architecture"]["enum"]
    assert set(offered) == set(TRAINED)


def test_every_setting_of_an_architecture_is_a_parameter_marked_for_it_alone():
    fields = Params.model_fields
    for name in TRAINED:
        for setting in architecture(name).settings:
            only_for = fields[setting].json_schema_extra["only_for"]
            assert setting == "aux_k_coefficient" or name in only_for["architecture"]


def test_the_history_has_meanings(activations):
    data = train_sae(activations, params(epochs=1), Job())
    assert set(map(str, data.data_vars)) <= set(MEANINGS)
    assert load_step("train_sae").output is Dictionary
    assert torch.get_default_dtype() == torch.float32


def together(activations: xr.Dataset, *points: Params, scratch: Path | None = None) -> list[xr.Dataset]:
    jobs = [Job(scratch=scratch / str(i)) if scratch else Job() for i in range(len(points))]
    members = [Member(point, job) for point, job in zip(points, jobs, strict=True)]
    return list(train_together(activations, members))


GRID = [
    params(architecture="relu", l1_coefficient=0.3),
    params(architecture="relu", l1_coefficient=1.0, learning_rate=0.01),
    params(k=2, seed=1),
    params(k=3, expansion=4),
    params(architecture="jumprelu", normalise="layer_norm"),
    params(architecture="batch_topk", dead_latents="resample", compute_dtype="bfloat16"),
]


def test_a_dictionary_trained_in_company_is_the_one_trained_alone(activations):
    for point, made in zip(GRID, together(activations, *GRID), strict=True):
        xr.testing.assert_identical(made, train_sae(activations, point, Job()))


def test_one_that_fails_leaves_the_others(activations):
    diverging = params(learning_rate=1e6, epochs=20)
    fine = params(epochs=20)
    too_many = params(k=17, epochs=20)
    failed, made, impossible = together(activations, diverging, fine, too_many)
    assert isinstance(failed, TrainingDiverged)
    assert isinstance(impossible, StepError)
    xr.testing.assert_identical(made, train_sae(activations, fine, Job()))


def test_a_new_member_and_one_that_was_interrupted_go_on_together(activations, tmp_path):
    """Each from its own step: what a member has done is not done again, and the bytes are the same."""
    first, second = params(k=2), params(k=3)
    with pytest.raises(Interrupted):
        train_sae(activations, first, interrupted_job(tmp_path / "0", 9))
    done = []
    members = [
        Member(first, Job(scratch=tmp_path / "0", report=lambda step, *_: done.append(step))),
        Member(second, Job()),
    ]
    made = list(train_together(activations, members))
    assert done == list(range(10, 31))
    for point, dictionary in zip((first, second), made, strict=True):
        xr.testing.assert_identical(dictionary, train_sae(activations, point, Job()))


def test_a_transcoder_reads_one_site_and_writes_another(activations):
    data = train_sae(
        activations, params(target_site="attn_out", skip=True, layer=1, epochs=40, learning_rate=0.01), Job()
    )
    check(data, Dictionary)
    sae = load_dictionary(data)
    x, y = (torch.from_numpy(activations[site].sel(layer=1).values) for site in ("resid_post", "attn_out"))
    # attn_out is resid_post less 2 everywhere: linear, so that the skip alone predicts it.
    fvu = (sae(x)[1] - y).square().sum() / (y - y.mean((0, 1))).square().sum()
    assert fvu < 0.02
    assert data.attrs["target_site"] == "attn_out"


def test_a_crosscoder_reads_and_writes_several_layers(activations):
    data = train_sae(activations, params(layer=[3, 1]), Job())
    check(data, Dictionary)
    assert data["layer"].values.tolist() == [3, 1]
    assert data["W_dec"].dims == ("latent", "layer", "d_model")
    for layer in (1, 3):
        rows = activations["resid_post"].sel(layer=layer).values.reshape(-1, D_MODEL).astype(np.float64)
        factor = np.sqrt(D_MODEL) / np.linalg.norm(rows, axis=1).mean()
        assert data["norm_factor"].sel(layer=layer).item() == pytest.approx(factor, rel=1e-6)


def test_a_small_buffer_serves_every_token_too(activations):
    data = train_sae(activations, params(buffer_tokens=40, epochs=2), Job())
    assert data["tokens_seen"].values[-1] == 2 * N_IMAGES * N_TOKENS


def test_grids_of_sparsity_and_seed_are_trained_together_and_layers_apart():
    shared = {"site", "target_site", "layer", "tokens", "batch_size", "epochs", "n_tokens", "buffer_tokens"}
    assert set(Params.model_fields) - may_differ(Params) == {*shared, "shuffle_seed"}
