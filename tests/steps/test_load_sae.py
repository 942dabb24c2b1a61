"""A published dictionary in the store computes what its files say, and its key knows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from prisma_steps import schema
from prisma_steps.job import Job
from prisma_steps.models import hub
from prisma_steps.models.loading import load_model
from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.plan import JobPlan, plan_experiment
from prisma_steps.problems import ExperimentError
from prisma_steps.progress import StatusFile
from prisma_steps.runner import run_jobs
from prisma_steps.sae.autoencoder import Shape
from prisma_steps.sae.formats.folders import write_folder
from prisma_steps.sae.formats.published import Published
from prisma_steps.sae.labelled import load_dictionary
from prisma_steps.sae.placed import as_splice
from prisma_steps.step import StepError
from prisma_steps.steps.evaluate_sae import Params as EvaluationParams
from prisma_steps.steps.evaluate_sae import evaluate_sae
from prisma_steps.steps.load_sae import Params, load_sae
from prisma_steps.store import Store
from tests.artifacts import saved
from tests.models.families import TOY
from tests.sae.dictionaries import SETTINGS
from tests.sae.published import activations, dictionary

COMMITS = ("0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef")
PLACE = {"site": "resid_post", "layer": 3, "tokens": "patch"}
TRANSCODER = Shape(8, 24, d_target=6, skip=True, subtract_b_dec=False)


def kept(folder: Path, **parameters: Any) -> xr.Dataset:
    """What a run would keep of the step's output."""
    data = load_sae(Params(path=str(folder), **parameters), Job())
    schema.check(data, schema.Dictionary)
    data.to_zarr(folder / "data.zarr", mode="w", consolidated=False)
    return xr.open_zarr(folder / "data.zarr", consolidated=False)


@pytest.mark.parametrize("format", ["sae_lens", "vit_prisma"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_published_dictionary_computes_the_same_from_the_store(tmp_path, name, format):
    if format == "vit_prisma" and name not in ("relu", "topk", "gated"):
        return
    ours = dictionary(name)
    write_folder(Published(ours, PLACE, {"model_name": "vit"}), tmp_path, format)
    data = kept(tmp_path)
    found = load_dictionary(data)
    x = activations(8, 40)
    # The log of a JumpReLU threshold rounds; all else is bit for bit.
    tolerance = 1e-6 if name == "jumprelu" else 0
    for before, after in zip(ours(x), found(x), strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=tolerance)
    assert {key: data.attrs[key] for key in PLACE} == PLACE
    assert data.attrs["model_name"] == "vit" and data.attrs["kind"] == "autoencoder"
    assert data.attrs["sparsity_setting"] == ours.sparsity_setting
    assert str(tmp_path) not in str(data.attrs)


def test_a_transcoder_knows_both_its_sites(tmp_path):
    place = {"site": "ln2_out", "layer": 1, "target_site": "mlp_out", "tokens": "all"}
    ours = dictionary("relu", TRANSCODER)
    write_folder(Published(ours, place), tmp_path, "sae_lens")
    data = kept(tmp_path)
    assert data.attrs["target_site"] == "mlp_out" and data["W_skip"].dims == ("d_model", "d_target")
    assert torch.equal(load_dictionary(data)(activations(8, 9))[1], ours(activations(8, 9))[1])


def test_a_place_that_the_files_do_not_name_is_given(tmp_path):
    write_folder(Published(dictionary("relu"), {}), tmp_path, "sae_lens")
    with pytest.raises(StepError, match="do not say where the dictionary belongs: set site, layer"):
        kept(tmp_path)
    with pytest.raises(StepError, match="belongs: set layer$"):
        kept(tmp_path, site="resid_post")
    data = kept(tmp_path, site="hook_resid_post", layer=2, tokens="cls")
    assert [data.attrs[name] for name in ("site", "layer", "tokens")] == ["resid_post", 2, "cls"]


def test_a_site_that_exists_once_has_no_layer(tmp_path):
    write_folder(Published(dictionary("relu"), {"site": "ln_final"}), tmp_path, "sae_lens")
    assert "layer" not in kept(tmp_path).attrs and kept(tmp_path).attrs["tokens"] == "all"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"site": "mlp_out"}, "site is 'mlp_out', and the files say 'resid_post': leave it out"),
        (
            {"layer": 4, "tokens": "cls"},
            "layer is 4, and the files say 3; tokens is 'cls', and the",
        ),
    ],
)
def test_a_place_that_contradicts_the_files_is_refused(tmp_path, given, message):
    write_folder(Published(dictionary("relu"), PLACE), tmp_path, "sae_lens")
    with pytest.raises(StepError, match=message):
        kept(tmp_path, **given)
    assert kept(tmp_path, site="resid_post", layer=3).attrs["layer"] == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "got neither"),
        ({"path": ".", "name": "org/sae"}, "got both"),
        ({"path": ".", "revision": "v2"}, "`revision` is of the hub: leave it out beside `path`"),
        ({"path": ".", "subfolder": "a"}, "`subfolder` is of the hub"),
        ({"name": "org/sae", "subfolder": "../a"}, "no folder inside a repository"),
        ({"name": "org/sae", "subfolder": "/a"}, "no folder inside a repository"),
        ({"path": ".", "site": "blocks.3.hook_resid_post"}, "names one layer: write resid_post"),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Params(**given)


# --- the key


def planned(folder: Path, node: str) -> JobPlan:
    file = folder / "experiment.yaml"
    file.write_text(f"nodes:\n  sae: {{step: load_sae, {node}}}\n")
    (job,) = plan_experiment(file, Store(folder / "store")).jobs.values()
    return job


def test_the_content_of_a_folder_is_in_the_key_and_not_its_place(tmp_path):
    for number, name in enumerate(("relu", "relu", "topk")):
        write_folder(Published(dictionary(name), PLACE), tmp_path / str(number), "sae_lens")
    keys = [planned(tmp_path, f"path: '{number}'").key for number in range(3)]
    assert keys[0] == keys[1] != keys[2]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A hub cache with two commits of a repository, ``main`` is the first; the hub is out of reach."""
    from huggingface_hub import constants

    repository = tmp_path / "cache" / "models--org--saes"
    for name, commit in zip(("relu", "topk"), COMMITS, strict=True):
        folder = repository / "snapshots" / commit / "layer_3" / "resid_post"
        write_folder(Published(dictionary(name), PLACE), folder, "sae_lens")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMITS[0])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repository


HUB = "name: org/saes, subfolder: layer_3/resid_post"


def test_the_commit_is_in_the_key_and_is_what_the_job_loads(cache, tmp_path):
    job, store = planned(tmp_path, HUB), Store(tmp_path / "store")
    assert job.identity["outside"] == {"revision": COMMITS[0]}
    assert planned(tmp_path, f"{HUB}, revision: {COMMITS[0]}").key == job.key
    (cache / "refs" / "main").write_text(COMMITS[1])
    assert planned(tmp_path, HUB).key != job.key
    told = run_jobs([job.spec("experiment")], store, {job.key: StatusFile(tmp_path / "status", "log")})
    assert list(told) == [(job.key, "computed")]
    made = store.artifact("load_sae", job.key)
    data = xr.open_zarr(made.folder / "data.zarr")
    assert data.attrs["architecture"] == "relu" and data.attrs["commit"] == COMMITS[0]
    assert data.attrs["name"] == "org/saes"
    assert str(tmp_path) not in json.dumps(made.manifest)


@pytest.mark.usefixtures("cache")
def test_a_subfolder_without_a_dictionary_is_named():
    with pytest.raises(StepError, match="there is no folder 'layer_4'"):
        load_sae(Params(name="org/saes", revision=COMMITS[0], subfolder="layer_4"), Job())


@pytest.mark.usefixtures("cache")
def test_a_revision_that_nobody_knows_is_a_problem_of_the_experiment(tmp_path):
    with pytest.raises(ExperimentError, match=r"sae\.name: the commit of 'org/saes' at revision 'v2' is not"):
        planned(tmp_path, f"{HUB}, revision: v2")
    with pytest.raises(hub.HubError, match=f"'org/saes' at {'f' * 40} cannot be downloaded: HF_HUB_OFFLINE"):
        load_sae(Params(name="org/saes", revision="f" * 40), Job())


# --- and then


@pytest.mark.parametrize(
    ("place", "writes"),
    [
        ({"site": "resid_pre", "layer": 0, "target_site": "mlp_out", "target_layer": 1}, ("mlp_out", 1)),
        ({"site": "mlp_out", "layer": 1, "target_site": "ln_final"}, ("ln_final", None)),
        ({"site": "ln2_out", "layer": 1, "target_site": "mlp_out"}, ("mlp_out", 1)),
    ],
)
def test_a_transcoder_is_evaluated_and_spliced_in_where_its_files_say(tmp_path, place, writes):
    """To another layer, to a site that exists once, or as most: FVU is of the site that it writes."""
    ours = dictionary("relu", Shape(12, 30, d_target=12, subtract_b_dec=False))
    write_folder(Published(ours, place), tmp_path / "sae", "sae_lens")
    data = load_sae(Params(path=str(tmp_path / "sae")), Job())
    assert as_splice(data).writes == writes

    torch.manual_seed(0)
    model = saved(ToyViT(ToyViTConfig(**TOY)), tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 2, 8, 8), np.uint8)
    ids = [f"image-{number}" for number in range(6)]
    images = xr.Dataset({"pixels": (("image", "channel", "row", "column"), pixels)}, {"image": ids})
    quality = evaluate_sae(data, model, images, EvaluationParams(cross_entropy=False), Job())
    vit = load_model(model)
    cache = vit.read(torch.from_numpy(pixels).float() / 255, [place["site"], writes[0]])
    x, y = cache[place["site"], place["layer"]].flatten(0, 1), cache[writes].flatten(0, 1)
    error = (y - ours(x)[1]).square().sum()
    expected = error / (y - y.mean(0)).square().sum()
    # float32 here, sums in float64 there.
    assert quality["fvu"].sel(token_kind="all").item() == pytest.approx(expected.item(), rel=1e-4)
