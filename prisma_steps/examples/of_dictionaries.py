"""Examples of dictionaries and of what is made with them."""

from __future__ import annotations

from typing import Any

from prisma_steps.examples.maker import (
    IMAGES,
    N_FRAMES,
    N_HEADS,
    N_LATENTS,
    WIDTH,
    Maker,
    of_classes,
    of_images,
)

#: Cosine above which decoder rows count as the same.
_MATCHED = 0.7


def dictionary(make: Maker) -> tuple[Any, Any]:
    """Variables and coordinates of an example of the kind dictionary."""
    data = {
        "W_enc": (("d_model", "latent"), make.random.normal(size=(WIDTH, N_LATENTS))),
        "W_dec": (("latent", "d_model"), make.random.normal(size=(N_LATENTS, WIDTH))),
        "b_enc": ("latent", make.random.normal(size=N_LATENTS)),
        "b_dec": ("d_model", make.random.normal(size=WIDTH)),
        "norm_factor": 1.0,
        **{
            name: ("step", values)
            for name, values in {
                "loss": make.uniform(1, 2, 4),
                "fvu": make.uniform(0.1, 0.5, 4),
                "l0": make.uniform(5, 50, 4),
                "dead_latents": [0, 0, 1, 2],
            }.items()
        },
    }
    history = {"step": [1, 2, 3, 4], "tokens_seen": ("step", [64, 128, 192, 256])}
    return data, {"latent": range(N_LATENTS), **history}


def quality(make: Maker) -> tuple[Any, Any]:
    """Variables and coordinates of an example of the kind quality."""
    fvu = make.uniform(0.05, 0.5, 3)
    kinds = {"l0": make.uniform(2, 60, 3), "fvu": fvu, "explained_variance": 1 - fvu, "mse": 3 * fvu}
    of_latents = {
        "firing_frequency": 10 ** make.uniform(-4, 0, N_LATENTS),
        "decoder_norm": make.uniform(0.9, 1.1, N_LATENTS),
        "max_decoder_cosine": make.uniform(0.1, 0.9, N_LATENTS),
        "nearest_latent": make.random.permutation(N_LATENTS),
    }
    ce = {"ce": 0.4, "ce_reconstruction": 0.4 + make.uniform(0, 0.1), "ce_zero_ablation": 1.1}
    data = {
        **{name: ("token_kind", values) for name, values in kinds.items()},
        **{name: ("latent", values) for name, values in of_latents.items()},
        **ce,
        "ce_recovered": 100 * (1.1 - ce["ce_reconstruction"]) / 0.7,
        "top1": 0.8,
        "top1_reconstruction": make.uniform(0.7, 0.8),
        "top1_zero_ablation": 0.3,
        **{"dead_share": 0.1, "dense_latents": 0.2, "alive_latents": 0.9},
    }
    return data, {"token_kind": ["all", "cls", "patch"], "latent": range(N_LATENTS)}


def codes(make: Maker) -> tuple[Any, Any]:
    """Variables and coordinates of an example of the kind codes."""
    import numpy as np

    place = ("image", "entry")
    token, latent = np.divmod(
        np.sort([make.random.choice(make.n_tokens * N_LATENTS, 6, replace=False) for _ in IMAGES]), N_LATENTS
    )
    counts = [np.bincount(row, minlength=make.n_tokens) for row in token]
    data = {
        "entry_token": (place, token),
        "entry_latent": (place, latent),
        "activation": (place, make.uniform(0.1, 3, *token.shape)),
        "n_active": (("image", "token"), np.stack(counts)),
        "n_latents": N_LATENTS,
    }
    return data, {**of_images(), "token": range(make.n_tokens), **make.tokens()}


def ranking(make: Maker) -> tuple[Any, Any]:
    """Variables and coordinates of an example of the kind ranking."""
    import numpy as np

    data: dict[str, Any] = {}
    for name, dim, count in (("top", "rank", 3), ("quantile", "quantile", 2)):
        order = np.array([make.random.permutation(IMAGES)[:count] for _ in range(N_LATENTS)])
        maps = make.uniform(0, 2, N_LATENTS, count, make.n_tokens) * make.random.integers(
            0, 2, (N_LATENTS, count, make.n_tokens)
        )
        falling = np.argsort(-maps.max(-1), axis=1)
        maps = np.take_along_axis(maps, falling[..., None], axis=1)
        data[f"{name}_image"] = (("latent", dim), order)
        data[f"{name}_activation"] = (("latent", dim), maps.max(-1))
        data[f"{name}_heat_map"] = (("latent", dim, "token"), maps)
    coords = {"latent": range(N_LATENTS), "rank": range(3), "quantile": [0.5, 1.0]}
    return data, {**coords, "token": range(make.n_tokens), **make.tokens()}


def steering(make: Maker) -> tuple[Any, Any]:
    """Variables and coordinates of an example of the kind steering."""
    import numpy as np

    cells, clean = ("latent", "strength", "image", "class"), ("image", "class")
    logit, before = make.random.normal(size=(2, 4, 3, 3)), make.random.normal(size=(3, 3))
    changes = {"logit": (logit, before)}
    changes["probability"] = tuple(np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in changes["logit"])
    data: dict[str, Any] = {}
    for name, (values, plain) in changes.items():
        data |= {name: (cells, values), f"clean_{name}": (clean, plain)}
        data[f"mean_{name}_change"] = (("latent", "strength", "class"), (values - plain).mean(2))
    strength = ("strength", [0.0, 1.0, 2.0, 4.0], {"units": "highest activation of the latent"})
    return data, {"latent": [3, 1], "strength": strength, **of_images(), **of_classes()}


def splicing(make: Maker) -> tuple[Any, Any]:
    """Variables and coordinates of an example of the kind splicing."""
    import numpy as np

    logit = make.random.normal(size=(3, 3, 3))
    logit[2] = logit[0]  # the error term restores the clean run
    attention = make.patterns(3, 3, N_HEADS)[..., 0, :]
    data = {
        **{
            name: (("image", "token"), make.uniform(1, 3, 3, make.n_tokens))
            for name in ("value_norm", "reconstruction_norm", "error_norm")
        },
        "cls_attention": (("run", "image", "head", "key_token"), attention),
        "logit": (("run", "image", "class"), logit),
        "probability": (("run", "image", "class"), np.exp(logit) / np.exp(logit).sum(-1, keepdims=True)),
    }
    coords = {"run": ["clean", "reconstruction", "error_term"], **of_images(), **of_classes()}
    return data, {**coords, "site": "resid_post", "layer": 0, **make.tokens()}


def time_courses(make: Maker) -> tuple[Any, Any]:
    """Variables and coordinates of an example of the kind time courses."""
    highest = make.uniform(0, 2, 2, 3, N_FRAMES)
    place = ("latent", "image", "patch_frame")
    data = {"highest_in_frame": (place, highest), "mean_in_frame": (place, highest / 3)}
    return data, {"latent": [3, 1], "patch_frame": range(N_FRAMES), **of_images(), **of_classes()}


def similarity(make: Maker) -> tuple[Any, Any]:
    """Variables and coordinates of an example of the kind similarity."""
    data: dict[str, Any] = {"cosine_map": (("first_cell", "second_cell"), make.uniform(-0.2, 1, 4, 4))}
    for side in ("first", "second"):
        cosines = make.uniform(0.2, 1, N_LATENTS)
        data[f"{side}_max_cosine"] = (f"{side}_latent", cosines)
        data[f"{side}_matched_share"] = (cosines > _MATCHED).mean()
    latents = {f"{side}_latent": range(N_LATENTS) for side in ("first", "second")}
    return data, latents
