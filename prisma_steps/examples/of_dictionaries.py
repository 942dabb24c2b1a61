"""Examples of dictionaries and of what is made with them."""

from __future__ import annotations

from typing import Any

from prisma_steps.examples.maker import IMAGES, N_LATENTS, WIDTH, Maker, of_classes, of_images


def dictionary(make: Maker) -> tuple[Any, Any]:
    """Variables and coordinates of an example of the kind dictionary."""
    data = {
        "W_enc": (("d_model", "latent"), make.random.normal(size=(WIDTH, N_LATENTS))),
        "W_dec": (("latent", "d_model"), make.random.normal(size=(N_LATENTS, WIDTH))),
        "b_enc": ("latent", make.random.normal(size=N_LATENTS)),
        "b_dec": ("d_model", make.random.normal(size=WIDTH)),
        "norm_factor": 1.0,
    }
    return data, {"latent": range(N_LATENTS)}


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
        **{name: 0.1 * n for n, name in enumerate(("dead_share", "dense_latents", "alive_latents"), 1)},
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
