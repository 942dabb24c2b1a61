"""Small made-up artifacts of every kind, with all that a real one has, to try a step or a figure on.

Two layers of two heads, CLS and 2 × 3 patches (of clips in each of two frames), three images of three
classes. Numbers are random but possible: patterns sum to 1, a normalised effect is mostly between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prisma_steps.examples import of_dictionaries, of_interventions, of_models
from prisma_steps.examples.maker import Maker

if TYPE_CHECKING:
    import xarray as xr

#: What makes the variables and the coordinates of each kind, and the attributes that some have.
MAKERS: Mapping[str, Callable[[Maker], tuple[Any, Any]]] = {
    "images": of_models.images,
    "model": of_models.model,
    "activations": of_models.activations,
    "dictionary": of_dictionaries.dictionary,
    "quality": of_dictionaries.quality,
    "codes": of_dictionaries.codes,
    "ranking": of_dictionaries.ranking,
    "pairs": of_interventions.pairs,
    "patching": of_interventions.patching,
    "lens": of_models.lens,
    "attribution": of_models.attribution,
    "attention": of_models.attention,
    "ablation": of_interventions.ablation,
    "steering": of_dictionaries.steering,
    "circuit": of_interventions.circuit,
    "latent circuit": of_interventions.latent_circuit,
    "figure": of_models.figure,
}
_ATTRS: Mapping[str, Mapping[str, Any]] = {
    "dictionary": {"site": "resid_post", "layer": 1, "architecture": "relu"},
    "patching": {"site": "resid_pre", "direction": "denoising", "compute_dtype": "float32"},
    "ablation": {"site": "attn_out", "tokens": "all", "n_images": 50, "n_reference": 50},
    "steering": {"mode": "clamp", "tokens": "all"},
    "circuit": {"method": "eap_ig", "metric": "logit_difference", "selection": "greedy", "graph_edges": 10},
    "latent circuit": {"metric": "logit_difference"},
}


def made_up(kind: str, seed: int, clips: bool, cells: Sequence[str]) -> xr.Dataset:
    """An artifact of a kind, without long names and units.

    Raises:
        KeyError: for a kind that none is made of.
    """
    import numpy as np
    import xarray as xr

    make = MAKERS[kind]
    data, coords = make(Maker(np.random.default_rng(seed), clips, cells))
    attrs = dict(_ATTRS.get(kind, {}))
    if "site" in attrs and "head" in cells and kind != "dictionary":
        attrs["site"] = "z"
    return xr.Dataset(data, coords, attrs)
