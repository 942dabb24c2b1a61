from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from prisma_steps import schema
from prisma_steps.analysis.circuits.latent_tracing import score_latents
from prisma_steps.analysis.circuits.latents import placed_in_order
from prisma_steps.analysis.circuits.tracing import pair_tensors
from prisma_steps.axes import Axis
from prisma_steps.hypercube import combine
from prisma_steps.job import Job
from prisma_steps.models.loading import load_model
from prisma_steps.models.splicing import Splice
from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.sae.autoencoder import Shape
from prisma_steps.sae.labelled import dictionary_dataset
from prisma_steps.seeding import torch_generator
from prisma_steps.step import Artifact, StepError
from prisma_steps.steps.trace_latents import Params, circuit_of_latents, trace_latents
from tests.artifacts import saved
from tests.sae.published import dictionary

CLASS_NAMES = ["dark", "bright"]
N_PAIRS, N_LATENTS, D_MODEL = 3, 20, 8
CONFIG = ToyViTConfig(
    n_layers=2, d_model=D_MODEL, n_heads=2, d_mlp=16, patch_size=2, image_size=4, n_channels=1, n_classes=2
)
SMALL = {"ig_steps": 3, "n_latents": 4}


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    vit = ToyViT.initialised(CONFIG, torch_generator(0, "weights"))
    return saved(vit, tmp_path / "model", xr.Dataset(coords={"class_name": ("class", CLASS_NAMES)}))


@pytest.fixture
def images() -> xr.Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (2 * N_PAIRS, 1, 4, 4), "uint8")
    return xr.Dataset(
        {"pixels": (("image", "channel", "row", "column"), pixels)},
        coords={"image": [f"image-{n}" for n in range(2 * N_PAIRS)]},
    )


@pytest.fixture
def pairs(images: xr.Dataset) -> xr.Dataset:
    ids = images["image"].values
    return xr.Dataset(
        {
            "clean_image": ("pair", ids[:N_PAIRS]),
            "corrupted_image": ("pair", ids[N_PAIRS:]),
            "clean_class": ("pair", ["dark", "bright", "dark"]),
            "corrupted_class": ("pair", ["bright", "dark", "bright"]),
        }
    )


def splice(layer: int) -> Splice:
    """Another dictionary in each layer."""
    made = dictionary("topk", Shape(D_MODEL, N_LATENTS))
    with torch.no_grad():
        made.W_enc.add_(0.1 * layer)
    return Splice(made, ("resid_post", layer), ("resid_post", layer))


def stored(layer: int) -> xr.Dataset:
    return dictionary_dataset(
        splice(layer).dictionary, {}, {"site": "resid_post", "layer": layer, "tokens": "all"}
    )


def gathered(*dictionaries: xr.Dataset) -> xr.Dataset:
    """As a slot that gathers a grid over layers receives them."""
    layers = tuple(data.attrs["layer"] for data in dictionaries)
    return combine(dictionaries, [Axis("depth", {"depth": layers})])


def test_gathered_dictionaries_are_those_in_memory(
    model: Artifact, images: xr.Dataset, pairs: xr.Dataset
) -> None:
    params = Params(circuit_sizes=[10, 42], **SMALL)
    found = trace_latents(model, images, pairs, gathered(stored(1), stored(0)), params, Job())
    schema.check(found, schema.LatentCircuit)
    assert all({"long_name", "units"} <= set(found[name].attrs) for name in found.variables)
    in_memory = circuit_of_latents(load_model(model), images, pairs, [splice(0), splice(1)], params, Job())
    xr.testing.assert_identical(found, in_memory)
    assert found["dictionary"].values.tolist() == ["resid_post 0", "resid_post 1"]
    assert not np.allclose(*found["latent_effect"])


def test_whole_circuits_are_faithful_and_labels_are_true(
    model: Artifact, images: xr.Dataset, pairs: xr.Dataset
) -> None:
    params = Params(circuit_sizes=[42, 10], ablations=["corrupted", "zero", "mean"], **SMALL)
    found = trace_latents(model, images, pairs, gathered(stored(0), stored(1)), params, Job())
    # Float32: metrics of about 1 are off by 1e-6 of it, and their differences are of 0.1 and more.
    np.testing.assert_allclose(found["faithfulness"].sel(n_nodes=42), 1, atol=1e-4)
    np.testing.assert_allclose(found["faithfulness_complement"].sel(n_nodes=42), 0, atol=1e-4)
    np.testing.assert_allclose(found["faithfulness_random"].sel(n_nodes=42), 1, atol=1e-4)
    kept = found["latent_in_circuit"].sum(("dictionary", "latent")) + found["error_in_circuit"].sum(
        "dictionary"
    )
    assert kept.values.tolist() == [10, 42]
    strength = np.abs(np.concatenate([found["latent_effect"].values.ravel(), found["error_effect"].values]))
    smallest = np.sort(strength)[-10]
    circuit = found["latent_in_circuit"].sel(n_nodes=10)
    assert (abs(found["latent_effect"]).where(circuit).min() >= smallest * (1 - 1e-6)).all()

    vit = load_model(model)
    placed = placed_in_order(vit, [splice(0), splice(1)])
    tensors = pair_tensors(vit, images, pairs, "logit_difference")
    effects = score_latents(vit, placed, tensors, "logit_difference", 3, batch_size=2)
    for place, effect in enumerate(effects):
        np.testing.assert_allclose(found["latent_effect"][place], effect[:-1], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found["error_effect"][place], effect[-1], rtol=1e-4, atol=1e-6)


def test_edges_go_from_each_dictionary_to_the_next_and_to_the_logits(
    model: Artifact, images: xr.Dataset, pairs: xr.Dataset
) -> None:
    params = Params(circuit_sizes=[5], ig_steps=3, n_latents=N_LATENTS)
    found = trace_latents(model, images, pairs, gathered(stored(0), stored(1)), params, Job())
    score = found["score"]
    first, second = (score["source"].str.startswith(f"resid_post {layer} ") for layer in (0, 1))
    inside = score["target"].str.startswith("resid_post 1 ")
    assert score[first.values][:, inside.values].notnull().all()
    assert score[first.values].sel(target="logits").isnull().all()
    assert score[second.values][:, inside.values].isnull().all()
    latent = int(np.abs(found["latent_effect"].values[1]).argmax())
    to_logits = score.sel(source=f"resid_post 1 latent {latent}", target="logits")
    assert float(to_logits) == pytest.approx(float(found["latent_effect"][1, latent]))
    to_error = score.sel(source="resid_post 1 error", target="logits")
    assert float(to_error) == pytest.approx(float(found["error_effect"][1]))


def test_a_single_dictionary(model: Artifact, images: xr.Dataset, pairs: xr.Dataset) -> None:
    found = trace_latents(model, images, pairs, stored(1), Params(circuit_sizes=[5], **SMALL), Job())
    assert found["score"].dims == ("source", "target")
    assert found["target"].values.tolist() == ["logits"]
    assert found.sizes["source"] == 5


@pytest.fixture
def never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*_: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr(ToyViT, "forward", forward)


@pytest.mark.usefixtures("never_run")
class TestRefusedBeforeTheFirstRun:
    def test_a_circuit_of_more_than_there_is(
        self, model: Artifact, images: xr.Dataset, pairs: xr.Dataset
    ) -> None:
        params = Params(circuit_sizes=[43])
        with pytest.raises(StepError, match="circuit_sizes has 43, and the dictionaries have 42 latents and"):
            trace_latents(model, images, pairs, gathered(stored(0), stored(1)), params, Job())

    def test_a_layer_that_the_model_lacks(
        self, model: Artifact, images: xr.Dataset, pairs: xr.Dataset
    ) -> None:
        with pytest.raises(StepError, match="resid_post 2 does not belong to this model: no layer 2"):
            trace_latents(model, images, pairs, stored(2), Params(circuit_sizes=[3]), Job())

    def test_two_dictionaries_of_one_site(
        self, model: Artifact, images: xr.Dataset, pairs: xr.Dataset
    ) -> None:
        both = combine([stored(0), stored(0)], [Axis("seed", {"seed": (0, 1)})])
        with pytest.raises(StepError, match="two dictionaries are of resid_post 0"):
            trace_latents(model, images, pairs, both, Params(circuit_sizes=[3]), Job())

    def test_dictionaries_of_two_widths(self, model: Artifact, images: xr.Dataset, pairs: xr.Dataset) -> None:
        narrow = Splice(dictionary("topk", Shape(D_MODEL, 12)), ("mlp_out", 0), ("mlp_out", 0))
        with pytest.raises(StepError, match=r"the dictionaries have \[12, 20\] latents"):
            circuit_of_latents(
                load_model(model), images, pairs, [splice(1), narrow], Params(circuit_sizes=[3]), Job()
            )


def test_a_dictionary_of_another_model(model: Artifact, images: xr.Dataset, pairs: xr.Dataset) -> None:
    data = dictionary_dataset(
        dictionary("topk", Shape(12, N_LATENTS)), {}, {"site": "resid_post", "layer": 1, "tokens": "all"}
    )
    with pytest.raises(StepError, match="resid_post 1 is 12 → 12 wide, and its sites of this model 8 → 8"):
        trace_latents(model, images, pairs, data, Params(circuit_sizes=[3]), Job())
