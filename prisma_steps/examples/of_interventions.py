"""Examples of what interventions do, and of circuits."""

from __future__ import annotations

from typing import Any

from prisma_steps.examples.maker import N_HEADS, N_LATENTS, N_LAYERS, Maker, of_heads

#: Labels of curves of faithfulness.
_OF_CURVES = {"ablation": ["corrupted", "zero"], "control": range(4)}


def pairs(_: Maker) -> tuple[Any, Any]:
    """Variables and coordinates of an example of the kind pairs."""
    data = {
        "clean_image": ("pair", ["a", "b"]),
        "corrupted_image": ("pair", ["b", "c"]),
        "clean_class": ("pair", [0, 1]),
        "corrupted_class": ("pair", [1, 2]),
    }
    return data, {"pair": range(2)}


def patching(make: Maker) -> tuple[Any, Any]:
    """Variables and coordinates of an example of the kind patching."""
    sizes = {"pair": 4, "layer": N_LAYERS, "head": N_HEADS, "token": make.n_tokens}
    dims = ["pair", "layer", *(dim for dim in ("head", "token") if dim in make.cells)]
    data: dict[str, Any] = {}
    for name, (corrupted, clean) in {
        "logit_difference": (-3.0, 4.0),
        "probability": (0.05, 0.9),
        "ce": (3.0, 0.1),
        "kl": (2.5, 0.0),
    }.items():
        share = make.uniform(-0.1, 0.9, *(sizes[dim] for dim in dims))
        data |= {name: (dims, corrupted + share * (clean - corrupted)), f"normalised_{name}": (dims, share)}
        data |= {f"clean_{name}": ("pair", [clean] * 4), f"corrupted_{name}": ("pair", [corrupted] * 4)}
    coords = {dim: range(sizes[dim]) for dim in dims}
    return data, {**coords, **(make.tokens() if "token" in dims else {})}


def ablation(make: Maker) -> tuple[Any, Any]:
    """Variables and coordinates of an example of the kind ablation."""
    by_head = "head" in make.cells
    dims = ("ablation", "layer", *(["head"] if by_head else []))
    more = make.uniform(-0.05, 1, 3, N_LAYERS, *([N_HEADS] if by_head else []))
    data = {
        "ce": 0.4,
        "top1": 0.9,
        "ce_ablated": (dims, 0.4 + more),
        "top1_ablated": (dims, 0.85 - more / 2),
        "ce_increase": (dims, more),
        "ce_increase_standard_error": (dims, 0.1 + abs(more) / 10),
    }
    heads = {} if by_head else {"layer": range(N_LAYERS)}
    kinds = ["zero", "mean", "resample"]
    return data, {"ablation": kinds, **(of_heads() if by_head else heads)}


def circuit(make: Maker) -> tuple[Any, Any]:
    """Variables and coordinates of an example of the kind circuit."""
    import numpy as np

    sources = ["embed", "head 0.0", "head 0.1", "mlp 0"]
    targets = ["head 0.0.q", "head 0.0.k", "head 0.0.v", "mlp 0", "logits"]
    exists = np.array([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]], dtype=bool)
    score = np.where(exists, make.random.normal(size=exists.shape), np.nan)
    rank = np.argsort(np.argsort(-np.nan_to_num(abs(score)).ravel())).reshape(exists.shape)
    sizes = [2, 4, 8]
    chosen = np.stack([exists & (rank < size) for size in sizes])
    data = {
        "score": (("source", "target"), score),
        "in_circuit": (("n_edges", "source", "target"), chosen),
        "n_edges_kept": ("n_edges", chosen.sum((1, 2))),
        **_curves(make, "n_edges"),
    }
    return data, {"source": sources, "target": targets, "n_edges": sizes, **_OF_CURVES}


def _curves(make: Maker, size: str) -> dict[str, Any]:
    """Faithfulness of three circuits, of their complements and of random circuits."""
    rising = make.uniform(0, 1, 2, 3).cumsum(1) / 3
    return {
        "faithfulness": (("ablation", size), rising),
        "faithfulness_complement": (("ablation", size), 1 - rising),
        "faithfulness_random": (("ablation", "control", size), make.uniform(-0.1, 0.3, 2, 4, 3)),
        "faithfulness_area": ("ablation", rising.mean(1)),
    }


def latent_circuit(make: Maker) -> tuple[Any, Any]:
    """Variables and coordinates of an example of the kind latent circuit."""
    import numpy as np

    dictionaries, sizes = ["resid_post_0", "resid_post_1"], [1, 3, 6]
    effect = make.random.normal(size=(2, N_LATENTS + 1))
    rank = np.argsort(np.argsort(-abs(effect).ravel())).reshape(effect.shape)
    chosen = np.stack([rank < size for size in sizes])
    ends = ["resid_post_0 latent 1", "resid_post_0 error", "resid_post_1 latent 0"]
    data = {
        "latent_effect": (("dictionary", "latent"), effect[:, :-1]),
        "error_effect": ("dictionary", effect[:, -1]),
        "latent_in_circuit": (("n_nodes", "dictionary", "latent"), chosen[..., :-1]),
        "error_in_circuit": (("n_nodes", "dictionary"), chosen[..., -1]),
        "score": (("source", "target"), make.random.normal(size=(3, 2))),
        **_curves(make, "n_nodes"),
    }
    coords = {"dictionary": dictionaries, "latent": range(N_LATENTS), "n_nodes": sizes}
    return data, {**coords, "source": ends, "target": [ends[-1], "logits"], **_OF_CURVES}
