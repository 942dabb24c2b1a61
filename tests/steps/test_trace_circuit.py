from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from pydantic import ValidationError

from prisma_steps import schema
from prisma_steps.job import Job
from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.seeding import torch_generator
from prisma_steps.step import Artifact, StepError
from prisma_steps.steps.trace_circuit import Params, trace_circuit
from tests.analysis.circuits.planted import CIRCUIT, planted_pixels, planted_vit
from tests.artifacts import saved

CLASS_NAMES = ["dark", "bright"]
TRUTH = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 0.0])
N_PAIRS = 3
ABLATIONS = ["corrupted", "zero", "mean", "resample"]


@pytest.fixture
def images() -> xr.Dataset:
    """The first three are clean images, the others their counterparts."""
    pixels = (255 * planted_pixels(TRUTH, torch.Generator().manual_seed(0))).round().byte().numpy()
    return xr.Dataset(
        {"pixels": (("image", "channel", "row", "column"), pixels)},
        coords={
            "image": [f"image-{n}" for n in range(len(TRUTH))],
            "label": ("image", TRUTH.long().numpy()),
            "class_name": ("class", CLASS_NAMES),
        },
    )


@pytest.fixture
def pairs(images: xr.Dataset) -> xr.Dataset:
    ids, names = images["image"].values, np.array(CLASS_NAMES)[images["label"].values]
    return xr.Dataset(
        {
            "clean_image": ("pair", ids[:N_PAIRS]),
            "corrupted_image": ("pair", ids[N_PAIRS:]),
            "clean_class": ("pair", names[:N_PAIRS]),
            "corrupted_class": ("pair", names[N_PAIRS:]),
        }
    )


@pytest.fixture
def planted(tmp_path: Path) -> Artifact:
    return saved(planted_vit(), tmp_path, xr.Dataset(coords={"class_name": ("class", CLASS_NAMES)}))


@pytest.fixture
def random_vit(tmp_path: Path) -> Artifact:
    config = ToyViTConfig(
        n_layers=2, d_model=8, n_heads=2, d_mlp=16, patch_size=2, image_size=4, n_channels=1, n_classes=2
    )
    vit = ToyViT.initialised(config, torch_generator(0, "weights"))
    return saved(vit, tmp_path / "random", xr.Dataset(coords={"class_name": ("class", CLASS_NAMES)}))


@pytest.mark.parametrize("method", ["exact", "eap", "eap_ig"])
@pytest.mark.parametrize("selection", ["greedy", "top"])
def test_the_planted_circuit_is_found(
    planted: Artifact, images: xr.Dataset, pairs: xr.Dataset, method: str, selection: str
) -> None:
    params = Params(method=method, selection=selection, circuit_sizes=[3, 2], ablations=ABLATIONS[:1])
    found = trace_circuit(planted, images, pairs, params, Job())
    schema.check(found, schema.Circuit)
    edges = found["score"].stack(edge=("source", "target"))
    assert set(edges[abs(edges) > 1e-4]["edge"].values.tolist()) == CIRCUIT
    circuit = found["in_circuit"].sel(n_edges=3).stack(edge=("source", "target"))
    assert set(circuit[circuit]["edge"].values.tolist()) == CIRCUIT
    # Two edges of three lead nowhere.
    assert found["n_edges_kept"].values.tolist() == [0, 3]
    faithful = found["faithfulness"].sel(ablation="corrupted")
    np.testing.assert_allclose(faithful, [0, 1], atol=1e-5)
    np.testing.assert_allclose(found["faithfulness_complement"].sel(n_edges=3), 0, atol=1e-5)
    np.testing.assert_allclose(found["faithfulness_area"], 0.5, atol=1e-5)


def test_the_whole_graph_is_faithful_whatever_is_ablated(
    random_vit: Artifact, images: xr.Dataset, pairs: xr.Dataset
) -> None:
    params = Params(circuit_sizes=[5, 46], ablations=ABLATIONS, n_controls=2)
    found = trace_circuit(random_vit, images, pairs, params, Job())
    assert found.attrs["graph_edges"] == 46
    whole = found.sel(n_edges=46)
    # Float32: metrics of about 1 are off by 1e-6 of it, and their differences are of 0.1 and more.
    for name in ("faithfulness", "faithfulness_random"):
        np.testing.assert_allclose(whole[name], 1, atol=1e-4)
    np.testing.assert_allclose(whole["faithfulness_complement"], 0, atol=1e-4)
    assert found["faithfulness_random"].dims == ("ablation", "control", "n_edges")
    assert found["score"].isnull().sum() == found["score"].size - 46
    assert all({"long_name", "units"} <= set(found[name].attrs) for name in found.variables)


def test_ablations_are_what_they_are_called(planted: Artifact, images: xr.Dataset, pairs: xr.Dataset) -> None:
    """The planted model answers 2 · (value of the last patch) − 1 for the class "bright"."""
    params = Params(circuit_sizes=[3], ablations=ABLATIONS)
    found = trace_circuit(planted, images, pairs, params, Job())["empty_metric"]
    told, sign = TRUTH[:N_PAIRS], 2 * TRUTH[:N_PAIRS] - 1
    assert float(found.sel(ablation="corrupted")) == pytest.approx(-1, abs=1e-4)
    assert float(found.sel(ablation="zero")) == pytest.approx(float((-sign).mean()), abs=1e-4)
    assert float(found.sel(ablation="mean")) == pytest.approx(
        float((sign * (2 * told.mean() - 1)).mean()), abs=1e-4
    )
    other = [float((sign * (2 * told.roll(shift) - 1)).mean()) for shift in (1, 2)]
    assert float(found.sel(ablation="resample")) == pytest.approx(other[0], abs=1e-4) or float(
        found.sel(ablation="resample")
    ) == pytest.approx(other[1], abs=1e-4)


def test_the_planted_circuit_needs_each_of_its_edges(
    planted: Artifact, images: xr.Dataset, pairs: xr.Dataset
) -> None:
    params = Params(circuit_sizes=[3], ablations=["corrupted", "zero"], minimality_of=3)
    found = trace_circuit(planted, images, pairs, params, Job())
    for ablation in ("corrupted", "zero"):
        edges = found["minimality"].sel(ablation=ablation).stack(edge=("source", "target")).dropna("edge")
        assert set(edges["edge"].values.tolist()) == CIRCUIT
        faithful = found["faithfulness"].sel(ablation=ablation, n_edges=3)  # 1 of corrupted, less of zero
        np.testing.assert_allclose(edges, faithful, atol=1e-4)


def test_minimality_is_what_a_circuit_without_the_edge_lacks(
    random_vit: Artifact, images: xr.Dataset, pairs: xr.Dataset
) -> None:
    """Cut from the whole graph, an edge leaves a run in which it alone is patched: its exact score."""
    params = Params(method="exact", circuit_sizes=[8, 46], ablations=["corrupted"], minimality_of=46)
    found = trace_circuit(random_vit, images, pairs, params, Job())
    lost = found["minimality"].sel(ablation="corrupted")
    reach = float(found["clean_metric"] - found["empty_metric"][0])
    # Float32: metrics of about 1 are off by 1e-6 of it.
    np.testing.assert_allclose(lost, -found["score"] / reach, atol=1e-5 / abs(reach))
    with pytest.raises(ValidationError, match=r"is 9, which is none of circuit_sizes: \[8, 46\]"):
        Params(circuit_sizes=[46, 8], minimality_of=9)


def test_controls_are_as_large_as_circuits_and_follow_the_seed(
    random_vit: Artifact, images: xr.Dataset, pairs: xr.Dataset
) -> None:
    runs = [
        trace_circuit(random_vit, images, pairs, Params(circuit_sizes=[8, 16], seed=seed), Job())
        for seed in (0, 0, 1)
    ]
    assert runs[0].identical(runs[1])
    assert not np.allclose(runs[0]["faithfulness_random"], runs[2]["faithfulness_random"])
    np.testing.assert_array_equal(runs[0]["faithfulness"], runs[2]["faithfulness"])


def test_batches_do_not_change_what_is_found(
    random_vit: Artifact, images: xr.Dataset, pairs: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = Params(circuit_sizes=[8], ablations=ABLATIONS)
    whole = trace_circuit(random_vit, images, pairs, params, Job())
    monkeypatch.setattr("prisma_steps.analysis.circuits.tracing.pairs_at_once", lambda *_: 2)
    parts = trace_circuit(random_vit, images, pairs, params, Job())
    # Float32 sums in another order, at scores of 0.1 and faithfulness of 1.
    xr.testing.assert_allclose(whole, parts, rtol=1e-3, atol=1e-4)


def test_divergence_needs_no_classes_but_a_path(
    random_vit: Artifact, images: xr.Dataset, pairs: xr.Dataset
) -> None:
    pairs["corrupted_class"] = pairs["clean_class"]
    params = Params(metric="kl_to_clean", circuit_sizes=[8])
    found = trace_circuit(random_vit, images, pairs, params, Job())
    assert float(found["clean_metric"]) == pytest.approx(0, abs=1e-7)
    assert float(found["empty_metric"][0]) > 0
    with pytest.raises(ValidationError, match="no gradient at the clean run"):
        Params(method="eap", metric="kl_to_clean", circuit_sizes=[8])


@pytest.fixture
def never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*_: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr(ToyViT, "forward", forward)


@pytest.mark.usefixtures("never_run")
class TestRefusedBeforeTheFirstRun:
    def test_a_circuit_larger_than_the_graph(
        self, random_vit: Artifact, images: xr.Dataset, pairs: xr.Dataset
    ) -> None:
        with pytest.raises(StepError, match="circuit_sizes has 47, and the model's graph has 46 edges"):
            trace_circuit(random_vit, images, pairs, Params(circuit_sizes=[3, 47]), Job())

    def test_an_image_with_itself(self, random_vit: Artifact, images: xr.Dataset, pairs: xr.Dataset) -> None:
        pairs["corrupted_image"] = ("pair", ["image-3", "image-1", "image-5"])
        with pytest.raises(StepError, match="pair 1 is of the image image-1 with itself"):
            trace_circuit(random_vit, images, pairs, Params(circuit_sizes=[3]), Job())

    def test_two_equal_images(self, random_vit: Artifact, images: xr.Dataset, pairs: xr.Dataset) -> None:
        images["pixels"][5] = images["pixels"].values[2]
        with pytest.raises(StepError, match="the two images of pair 2 are equal"):
            trace_circuit(random_vit, images, pairs, Params(circuit_sizes=[3]), Job())

    def test_a_pair_of_one_class(self, random_vit: Artifact, images: xr.Dataset, pairs: xr.Dataset) -> None:
        pairs["corrupted_class"] = pairs["clean_class"]
        with pytest.raises(StepError, match="pair 0 are of one class.*kl_to_clean"):
            trace_circuit(random_vit, images, pairs, Params(circuit_sizes=[3]), Job())

    def test_a_class_that_does_not_exist(
        self, random_vit: Artifact, images: xr.Dataset, pairs: xr.Dataset
    ) -> None:
        pairs["clean_class"] = ("pair", ["grey"] * N_PAIRS)
        with pytest.raises(StepError, match="the class 'grey' is none of the model's"):
            trace_circuit(random_vit, images, pairs, Params(circuit_sizes=[3]), Job())

    def test_resampling_of_a_single_pair(
        self, random_vit: Artifact, images: xr.Dataset, pairs: xr.Dataset
    ) -> None:
        params = Params(circuit_sizes=[3], ablations=["resample"])
        with pytest.raises(StepError, match="there is one pair only"):
            trace_circuit(random_vit, images, pairs.isel(pair=[0]), params, Job())
