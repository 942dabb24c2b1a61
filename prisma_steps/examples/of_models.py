"""Examples of images, of models and of what is read from them."""

from __future__ import annotations

from typing import Any

from prisma_steps.examples.maker import (
    IMAGES,
    N_COLUMNS,
    N_FRAMES,
    N_HEADS,
    N_LAYERS,
    N_ROWS,
    PATCH,
    WIDTH,
    Maker,
    of_classes,
    of_heads,
    of_images,
)


def images(make: Maker) -> tuple[Any, Any]:
    """Variables and coordinates of an example of the kind images."""
    import numpy as np

    n_frames, n_rows, n_columns = 2 * N_FRAMES if make.clips else 1, N_ROWS * PATCH, N_COLUMNS * PATCH
    row, column = np.indices((n_rows, n_columns))
    pixels = np.empty((len(IMAGES), n_frames, 1, n_rows, n_columns), "uint8")
    pixels[:] = 40 + 3 * (row + column)  # a grey slope …
    for clip in pixels:
        top, left = make.random.integers(0, n_rows - PATCH), make.random.integers(0, n_columns - 2 * PATCH)
        for frame, of_frame in enumerate(clip):
            begin = left + 2 * frame  # … before which a white square goes to the right
            of_frame[0, top : top + PATCH, begin : begin + PATCH] = 255
    if make.clips:
        return {"pixels": (("image", "frame", "channel", "row", "column"), pixels)}, _known()
    return {"pixels": (("image", "channel", "row", "column"), pixels[:, 0])}, _known()


def _known() -> dict[str, Any]:
    return {**of_images(), **of_classes()}


def model(make: Maker) -> tuple[Any, Any]:
    """Variables and coordinates of an example of the kind model."""
    import numpy as np

    steps = np.arange(1, 5)
    loss = np.exp(-steps / 3) + make.uniform(0, 0.2, 4)
    data = {
        "train_loss": ("step", loss * 0.9),
        "test_loss": ("step", loss),
        "test_accuracy_history": ("step", 1 - loss / 2),
        "test_accuracy": 1 - loss[-1] / 2,
    }
    return data, {"step": steps * 10, "epoch": ("step", steps * 1.0), **of_classes()}


def activations(make: Maker) -> tuple[Any, Any]:
    """Variables and coordinates of an example of the kind activations."""
    data = {
        "resid_post": (
            ("image", "layer", "token", "d_model"),
            make.random.normal(size=(len(IMAGES), N_LAYERS, make.n_tokens, WIDTH)),
        ),
        "pattern": (
            ("image", "layer", "head", "query_token", "key_token"),
            make.patterns(len(IMAGES), N_LAYERS, N_HEADS),
        ),
    }
    places = {dim: range(make.n_tokens) for dim in ("token", "query_token", "key_token")}
    return data, {**_known(), **of_heads(), **places, **make.tokens()}


def lens(make: Maker) -> tuple[Any, Any]:
    """Variables and coordinates of an example of the kind lens."""
    cells = (len(IMAGES), N_LAYERS + 1, make.n_tokens)
    order = make.random.permuted([[[[*range(3)]] * cells[2]] * cells[1]] * cells[0], axis=-1)[..., :2]
    data: dict[str, Any] = {
        "top_class": (("image", "layer", "token", "place"), order),
        "top_logit": (("image", "layer", "token", "place"), make.uniform(0, 5, *cells, 1) - [0.0, 1.0]),
        "exit_class": (("image", "layer"), order[:, :, 0, 0]),
    }
    for prefix, shape in (("correct", cells), ("exit", cells[:2])):
        dims = ("image", "layer", "token")[: len(shape)]
        data[f"{prefix}_logit"] = (dims, make.uniform(-2, 5, *shape))
        data[f"{prefix}_rank"] = (dims, make.random.integers(0, 3, shape))
        data[f"{prefix}_probability"] = (dims, make.uniform(0, 1, *shape))
        data["ce" if prefix == "correct" else "exit_ce"] = (dims, make.uniform(0, 2, *shape))
    coords = {"layer": range(cells[1]), "token": range(cells[2]), "place": range(2)}
    return data, {**_known(), **coords, **make.tokens()}


def attribution(make: Maker) -> tuple[Any, Any]:
    """Variables and coordinates of an example of the kind attribution."""
    import numpy as np

    heads = [(layer, head) for layer in range(N_LAYERS) for head in range(N_HEADS)]
    rows = [("patches", "patches", -1, -1), *((f"head_{la}.{h}", "head", la, h) for la, h in heads)]
    rows += [(f"mlp_{layer}", "mlp", layer, -1) for layer in range(N_LAYERS)]
    rows.append(("unembedding_bias", "unembedding_bias", -1, -1))
    values = make.random.normal(size=(len(IMAGES), len(rows))) + np.linspace(-2, 3, len(rows))
    data = {
        "logit_contribution": (("image", "component"), values),
        "attributed_logit": ("image", values.sum(1)),
        "attributed_class": ("image", [0, 1, 2]),
    }
    places = zip(("kind", "layer", "head"), list(zip(*rows, strict=True))[1:], strict=True)
    coords = {f"component_{name}": ("component", list(column)) for name, column in places}
    return data, {**_known(), "component": [row[0] for row in rows], **coords}


def attention(make: Maker) -> tuple[Any, Any]:
    """Variables and coordinates of an example of the kind attention."""
    heads, kinds = ("layer", "head"), ["all", "cls", "patch"]
    types = ["self", "row", "column", "cls"]
    each = (N_LAYERS, N_HEADS)
    data: dict[str, Any] = {
        "attention_distance": (heads, make.uniform(4, 20, *each)),
        "uniform_attention_distance": 15.0,
        "attention_entropy": (("query_kind", *heads), make.uniform(0, 2, 3, *each)),
        "uniform_attention_entropy": ("query_kind", [1.9, 1.9, 1.9]),
        "attention_mass": (("query_kind", "key_kind", *heads), make.uniform(0, 0.5, 3, 2, *each)),
        "uniform_attention_mass": (("query_kind", "key_kind"), [[0.1, 0.9]] * 3),
        "head_score": (("head_type", *heads), make.uniform(0, 0.8, 4, *each)),
        "uniform_head_score": ("head_type", [0.1, 0.4, 0.3, 0.1]),
        "n_images": 50,
        "pattern": (("image", *heads, "query_token", "key_token"), make.patterns(len(IMAGES), *each)),
        "attention_rollout": (
            ("image", "layer", "query_token", "key_token"),
            make.patterns(len(IMAGES), N_LAYERS),
        ),
    }
    if make.clips:
        data["attention_frame_distance"] = (heads, make.uniform(0, 1, *each))
        data["uniform_attention_frame_distance"] = 0.5
    coords = {"query_kind": kinds, "key_kind": kinds[1:], "head_type": types}
    places = {dim: range(make.n_tokens) for dim in ("query_token", "key_token")}
    return data, {**of_images(), **of_heads(), **coords, **places, **make.tokens("key_token")}


def figure(make: Maker) -> tuple[Any, Any]:
    """Variables and coordinates of an example of the kind figure."""
    return {"l0": ("point", make.uniform(1, 60, 3))}, {"point": range(3)}
