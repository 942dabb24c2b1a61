from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from prisma_steps.analysis.circuits.graph import Graph
from prisma_steps.analysis.circuits.selection import greedy


@pytest.fixture
def models() -> xr.Dataset:
    """Histories of a grid of models: n_layers × attention_only × seed."""
    random = np.random.default_rng(0)
    dims = ("n_layers", "attention_only", "seed", "step")
    return xr.Dataset(
        {
            "test_accuracy_history": (dims, random.uniform(0.3, 1, (2, 2, 3, 4))),
            "test_loss": (dims, random.uniform(0, 1.1, (2, 2, 3, 4))),
        },
        coords={
            "n_layers": [1, 4],
            "attention_only": [False, True],
            "seed": [0, 1, 2],
            "step": [10, 20, 30, 40],
            "epoch": ("step", [1.0, 2.0, 3.0, 4.0]),
            "class_name": ("class", ["square", "ellipse", "heart", "disc"]),
        },
    )


@pytest.fixture
def quality() -> xr.Dataset:
    """Metrics of a grid of dictionaries: architecture × layer × sparsity × seed."""
    random = np.random.default_rng(1)
    dims = ("architecture", "layer", "sparsity", "seed", "token_kind")
    return xr.Dataset(
        {
            "l0": (dims, random.uniform(1, 100, (2, 3, 4, 2, 3))),
            "fvu": (dims, random.uniform(0, 1, (2, 3, 4, 2, 3))),
            "ce_recovered": (dims[:-1], random.uniform(90, 101, (2, 3, 4, 2))),
        },
        coords={
            "architecture": ["relu", "topk"],
            "layer": [0, 1, 2],
            "sparsity": [0, 1, 2, 3],
            "l1_coefficient": ("sparsity", [1e-4, 3e-4, 1e-3, 3e-3]),
            "k": ("sparsity", [64, 32, 16, 8]),
            "seed": [0, 1],
            "token_kind": ["all", "cls", "patch"],
        },
    )


def tokens(rows: int, columns: int, registers: int = 0) -> dict[str, tuple[str, np.ndarray]]:
    row, column = np.indices((rows, columns)).reshape(2, -1)
    aside = np.full(1 + registers, -1)
    return {
        "token_kind": ("token", np.array(["cls", *["register"] * registers, *["patch"] * row.size])),
        "patch_row": ("token", np.concatenate([aside, row])),
        "patch_col": ("token", np.concatenate([aside, column])),
    }


@pytest.fixture
def patching() -> xr.Dataset:
    """A sweep over 3 layers and a grid of 2 × 3 patches, for 5 pairs."""
    random = np.random.default_rng(2)
    effect = (("pair", "layer", "token"), random.uniform(-0.2, 1, (5, 3, 7)))
    return xr.Dataset(
        {"logit_difference": effect, "normalised_logit_difference": effect},
        coords={"pair": range(5), "layer": range(3), "token": range(7), **tokens(2, 3)},
        attrs={"direction": "denoising", "site": "resid_pre"},
    )


@pytest.fixture
def activations() -> xr.Dataset:
    """Attention patterns of 2 images, 2 layers and 2 heads over CLS and 2 × 3 patches."""
    random = np.random.default_rng(3)
    return xr.Dataset(
        {
            "pattern": (
                ("image", "layer", "head", "query_token", "key_token"),
                random.dirichlet(np.ones(7), size=(2, 2, 2, 7)),
            )
        },
        coords={
            "image": ["a", "b"],
            "layer": [0, 3],
            "head": [0, 1],
            "token": range(7),
            "query_token": range(7),
            "key_token": range(7),
            **tokens(2, 3),
        },
    )


@pytest.fixture
def images() -> xr.Dataset:
    pixels = np.random.default_rng(4).integers(0, 256, (3, 1, 8, 12), "uint8")
    return xr.Dataset(
        {"pixels": (("image", "channel", "row", "column"), pixels)}, coords={"image": ["c", "b", "a"]}
    )


@pytest.fixture
def lens() -> xr.Dataset:
    """A logit lens on 3 images, the embedding and 2 blocks, CLS and 2 × 3 patches, 4 classes, the top 2."""
    random = np.random.default_rng(5)
    cells = ("image", "layer", "token")
    return xr.Dataset(
        {
            "top_class": ((*cells, "place"), random.integers(0, 4, (3, 3, 7, 2))),
            "correct_probability": (cells, random.uniform(0, 1, (3, 3, 7))),
            "ce": (cells, random.uniform(0, 3, (3, 3, 7))),
        },
        coords={
            "image": ["a", "b", "c"],
            "layer": range(3),
            "token": range(7),
            **tokens(2, 3),
            "class_name": ("class", ["cat", "dog", "newt", "heron"]),
        },
    )


@pytest.fixture
def attribution() -> xr.Dataset:
    """Contributions of 5 components to a difference of two logits, on 4 images."""
    values = np.random.default_rng(6).normal(size=(4, 5)) + np.array([0.1, -3, 2, 0, 1])
    kinds = ["embedding", "head", "head", "mlp", "unembedding_bias"]
    return xr.Dataset(
        {
            "logit_contribution": (("image", "component"), values),
            "attributed_logit": ("image", values.sum(1)),
            "subtracted_class": ("image", [0, 1, 0, 1]),
        },
        coords={
            "image": list("abcd"),
            "component": ["embedding", "head_0.0", "head_0.1", "mlp_0", "unembedding_bias"],
            "component_kind": ("component", kinds),
            "component_layer": ("component", [-1, 0, 0, 0, -1]),
        },
    )


@pytest.fixture
def attention() -> xr.Dataset:
    """A description of 3 layers of 2 heads."""
    random = np.random.default_rng(7)
    places = ("layer", "head")
    return xr.Dataset(
        {
            "attention_distance": (places, random.uniform(5, 20, (3, 2))),
            "uniform_attention_distance": 15.0,
            "attention_entropy": (("query_kind", *places), random.uniform(0, 2, (2, 3, 2))),
            "uniform_attention_entropy": ("query_kind", [1.9, 1.8]),
            "head_score": (("head_type", *places), random.uniform(0, 0.8, (4, 3, 2))),
            "uniform_head_score": ("head_type", [0.1, 0.3, 0.2, 0.1]),
            "n_images": 50,
        },
        coords={
            "layer": range(3),
            "head": range(2),
            "query_kind": ["all", "patch"],
            "head_type": ["self", "row", "column", "cls"],
        },
    )


@pytest.fixture
def circuit() -> xr.Dataset:
    """Circuits of three sizes of a model of 2 layers of 2 heads, under two ablations, with 4 random ones."""
    random = np.random.default_rng(8)
    graph, sizes = Graph(n_layers=2, n_heads=2, n_mlps=1), [2, 6, 12]
    scores = np.where(graph.edges, random.normal(size=graph.edges.shape), np.nan)
    chosen = np.stack([graph.pruned(greedy(graph, np.nan_to_num(scores), size)) for size in sizes])
    curve = ("ablation", "n_edges")
    return xr.Dataset(
        {
            "score": (("source", "target"), scores),
            "in_circuit": (("n_edges", "source", "target"), chosen),
            "n_edges_kept": ("n_edges", chosen.sum((1, 2))),
            "faithfulness": (curve, random.uniform(0, 1, (2, 3))),
            "faithfulness_complement": (curve, random.uniform(0, 1, (2, 3))),
            "faithfulness_random": (("ablation", "control", "n_edges"), random.normal(size=(2, 4, 3))),
        },
        coords={
            "source": graph.sources,
            "target": graph.targets,
            "n_edges": sizes,
            "ablation": ["corrupted", "zero"],
            "control": range(4),
        },
        attrs={"method": "eap_ig", "metric": "logit_difference", "n_pairs": 32, "graph_edges": graph.n_edges},
    )
