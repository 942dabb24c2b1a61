"""Kinds of artifacts: what a step leaves and a slot takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prisma_steps.schema.meanings import IMAGE_DIMS
from prisma_steps.schema.sites import SITE_DIMS


@dataclass(frozen=True)
class Kind:
    """What sort of artifact a step leaves and a slot takes.

    Attributes:
        name: the word used in messages and in the JSON schema.
        dims: every dimension that an artifact of this kind may have.
        required: variables that must be there, with their dims.
        otherwise: dims that a required variable may have instead.
        seldom: those of ``dims`` that only some artifacts of the kind have (the layers of a crosscoder). They
            may be axes of a grid of the others.
        files: files that must lie beside the data. A slot of such a kind receives an ``Artifact``
            (data and files) instead of a Dataset.
    """

    name: str
    dims: frozenset[str]
    required: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    otherwise: Mapping[str, Sequence[tuple[str, ...]]] = field(default_factory=dict)
    seldom: frozenset[str] = frozenset()

    def __hash__(self) -> int:
        """Kinds are told apart by their names."""
        return hash(self.name)

    def takes(self, other: Kind) -> bool:
        """Whether a slot of this kind takes an artifact of the other."""
        return self == other or (self == Anything and other != Figure)


#: A slot of this kind takes the data of any node but a figure.
Anything = Kind("any", frozenset())

Images = Kind(
    "images",
    frozenset({"image", *IMAGE_DIMS, "class"}),
    required={"pixels": ("image", *IMAGE_DIMS[1:])},
    otherwise={"pixels": [("image", *IMAGE_DIMS)]},  # clips
)
Model = Kind(
    "model", frozenset({"step", "training_step", "class"}), files=("model.safetensors", "config.json")
)
Activations = Kind(
    "activations",
    frozenset(dim for dims in SITE_DIMS.values() for dim in dims) | {"layer"},
)
Dictionary = Kind(
    "dictionary",
    frozenset({"layer", "d_model", "d_target", "latent", "step"}),
    required={"W_enc": ("d_model", "latent"), "W_dec": ("latent", "d_model"), "b_dec": ("d_model",)},
    otherwise={
        "W_enc": [("layer", "d_model", "latent")],
        "W_dec": [("latent", "layer", "d_model"), ("latent", "d_target")],
        "b_dec": [("layer", "d_model"), ("d_target",)],
    },
    seldom=frozenset({"layer"}),
)
Quality = Kind(
    "quality",
    frozenset({"layer", "token_kind", "latent"}),
    required={"l0": ("token_kind",), "fvu": ("token_kind",)},
    otherwise={"fvu": [("layer", "token_kind")]},  # crosscoders
    seldom=frozenset({"layer"}),
)
Codes = Kind(
    "codes",
    frozenset({"image", "token", "entry"}),
    required={
        "entry_token": ("image", "entry"),
        "entry_latent": ("image", "entry"),
        "activation": ("image", "entry"),
        "n_active": ("image", "token"),
    },
)
Ranking = Kind(
    "ranking",
    frozenset({"latent", "rank", "quantile", "token"}),
    required={
        "top_image": ("latent", "rank"),
        "top_activation": ("latent", "rank"),
        "top_heat_map": ("latent", "rank", "token"),
    },
)
Pairs = Kind(
    "pairs",
    frozenset({"pair", *IMAGE_DIMS}),
    # ``corrupted_pixels`` [pair, *IMAGE_DIMS] too, where corrupted images are not images of the data set.
    required={f"{side}_{what}": ("pair",) for side in ("clean", "corrupted") for what in ("image", "class")},
)
Patching = Kind(
    "patching",
    frozenset({"pair", "site", "layer", "token", "head", "patch_frame"}),
    required={"logit_difference": ("pair", "layer", "token")},
    otherwise={
        "logit_difference": [
            ("pair", *several, "layer", *cells)
            for several in ((), ("site",))
            for cells in (("token",), ("head",), ("head", "token"), ("patch_frame",))
        ]
    },
    seldom=frozenset({"site"}),
)
Lens = Kind(
    "lens",
    frozenset({"image", "layer", "token", "place", "class"}),
    required={
        "top_class": ("image", "layer", "token", "place"),
        "top_logit": ("image", "layer", "token", "place"),
        "exit_class": ("image", "layer"),
    },
)
Attribution = Kind(
    "attribution",
    frozenset({"image", "component", "token", "class"}),
    required={"logit_contribution": ("image", "component"), "attributed_logit": ("image",)},
)
Attention = Kind(
    "attention",
    frozenset({"layer", "head", "query_kind", "key_kind", "head_type", "image", "query_token", "key_token"}),
    required={
        "attention_distance": ("layer", "head"),
        "attention_entropy": ("query_kind", "layer", "head"),
        "attention_mass": ("query_kind", "key_kind", "layer", "head"),
        "head_score": ("head_type", "layer", "head"),
    },
)
Ablation = Kind(
    "ablation",
    frozenset({"ablation", "layer", "head"}),
    required={
        "ce": (),
        "top1": (),
        "ce_ablated": ("ablation", "layer"),
        "top1_ablated": ("ablation", "layer"),
    },
    otherwise={name: [("ablation", "layer", "head")] for name in ("ce_ablated", "top1_ablated")},
)
Steering = Kind(
    "steering",
    frozenset({"latent", "strength", "image", "class"}),
    required={
        "logit": ("latent", "strength", "image", "class"),
        "probability": ("latent", "strength", "image", "class"),
        "clean_logit": ("image", "class"),
        "clean_probability": ("image", "class"),
        "mean_logit_change": ("latent", "strength", "class"),
        "mean_probability_change": ("latent", "strength", "class"),
    },
)
Circuit = Kind(
    "circuit",
    frozenset({"source", "target", "n_edges", "ablation", "control"}),
    required={
        "score": ("source", "target"),
        "in_circuit": ("n_edges", "source", "target"),
        "faithfulness": ("ablation", "n_edges"),
        "faithfulness_random": ("ablation", "control", "n_edges"),
    },
)
LatentCircuit = Kind(
    "latent circuit",
    frozenset({"dictionary", "latent", "source", "target", "n_nodes", "ablation", "control"}),
    required={
        "latent_effect": ("dictionary", "latent"),
        "error_effect": ("dictionary",),
        "score": ("source", "target"),
        "faithfulness": ("ablation", "n_nodes"),
        "faithfulness_random": ("ablation", "control", "n_nodes"),
    },
)
Splicing = Kind(
    "splicing",
    frozenset({"image", "token", "run", "head", "key_token", "class"}),
    required={
        **{name: ("image", "token") for name in ("value_norm", "reconstruction_norm", "error_norm")},
        "logit": ("run", "image", "class"),
        "probability": ("run", "image", "class"),
    },
)
TimeCourses = Kind(
    "time courses",
    frozenset({"latent", "image", "patch_frame", "class"}),
    required={
        "highest_in_frame": ("latent", "image", "patch_frame"),
        "mean_in_frame": ("latent", "image", "patch_frame"),
    },
)
Similarity = Kind(
    "similarity",
    frozenset({"first_latent", "second_latent", "first_cell", "second_cell"}),
    required={
        "first_max_cosine": ("first_latent",),
        "second_max_cosine": ("second_latent",),
        "cosine_map": ("first_cell", "second_cell"),
    },
)
Figure = Kind("figure", frozenset({"point"}), files=("figure.pdf", "figure.png", "numbers.csv"))
