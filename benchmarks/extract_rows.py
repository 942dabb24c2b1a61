"""What ``benchmarks.extract`` times: every row in a process of its own, with settings and memory of its own.

``python -m benchmarks.extract_rows ROW SHAPE`` says "ready"; for each number of images on its input it goes
through as many and says the most memory that the process ever had, in MiB.
"""

from __future__ import annotations

import gc
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from prisma_steps.runner import peak_memory

Row = Callable[[int], None]

SHAPES = {
    "CLIP-B/32": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "small": {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 3},
}
BATCH = 32
THREE, TO_FIVE, ALL = (3, 7, 11), (1, 3, 5), tuple(range(12))


def random_model(shape: str, attention: str = "sdpa") -> CLIPVisionModel:
    """A CLIP vision model of random weights: speed does not depend on them."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(**SHAPES[shape], patch_size=32, image_size=224, attn_implementation=attention)
    return CLIPVisionModel(config).eval()


def batch() -> Tensor:
    """The images, the same batch again and again: they are no part of what is timed."""
    return torch.randn(BATCH, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def stored_batch() -> np.ndarray:
    """Images as a store holds them, a batch of them."""
    return np.random.default_rng(1).integers(0, 256, (BATCH, 3, 224, 224), dtype=np.uint8)


# --- others


def transformers_forward(shape: str, attention: str = "sdpa", **options: bool) -> Row:
    """What a user of ``transformers`` writes."""
    model, pixels = random_model(shape, attention), batch()

    def run(count: int) -> None:
        with torch.no_grad():
            for _ in range(count // BATCH):
                model(pixels, **options)

    return run


def nnsight_trace(shape: str) -> Row:
    """Three layers saved by nnsight."""
    from nnsight import NNsight

    model, pixels = NNsight(random_model(shape)), batch()

    first, second, third = THREE

    def run(count: int) -> None:
        for _ in range(count // BATCH):
            with (
                torch.no_grad(),
                model.trace(pixels),
            ):  # only what is saved under a name of its own outlives it
                early = model.encoder.layers[first].output.save()
                middle = model.encoder.layers[second].output.save()
                late = model.encoder.layers[third].output.save()
            if not len(early) == len(middle) == len(late) == BATCH:
                raise RuntimeError("nnsight saved something else")

    return run


# --- ours


def extraction(
    shape: str, dtype: str, site: str, layers: Sequence[int], storage: str = "float32"
) -> Callable[[int, Path | None], None]:
    """The step ``extract_activations`` itself, on so many images, into a folder or nowhere."""
    import dask.array as da
    import xarray as xr

    from prisma_steps.datasets import write_blocks
    from prisma_steps.job import Job
    from prisma_steps.models.loading import model_files
    from prisma_steps.models.preprocessing import plain_preprocessing, preprocessing_files
    from prisma_steps.step import Artifact
    from prisma_steps.steps.extract_activations import Params, extract_activations

    folder = Path(tempfile.mkdtemp())
    as_they_are = plain_preprocessing((224, 224), [0, 0, 0], [1, 1, 1])
    files = {**model_files(random_model(shape)), **preprocessing_files(as_they_are)}
    for name, write in files.items():
        write(folder / name)
    model, job = Artifact(xr.Dataset(), folder), Job(folder, threads=torch.get_num_threads())
    params = Params(
        sites=[site], layers=list(layers), compute_dtype=dtype, storage_dtype=storage, batch_size=BATCH
    )
    dims, stored = ("image", "channel", "row", "column"), da.from_array(stored_batch())

    def run(count: int, store: Path | None) -> None:
        gc.collect()  # the model of the last run: a job has one
        pixels = da.concatenate([stored] * (count // BATCH))
        images = xr.Dataset({"pixels": (dims, pixels)}, {"image": [f"{n:06}" for n in range(count)]})
        blocks = extract_activations(model, images, params, job)
        if store is not None:
            write_blocks(blocks, store / "data.zarr", store / "state.json", lambda *_: None)
            return
        for start in range(0, count, blocks.size):
            blocks.make(slice(start, min(start + blocks.size, count)))

    return run


def ours(shape: str, *what: Any, written: bool = True) -> Row:
    """An extraction into a store that is then dropped, or of values that are dropped."""
    run = extraction(shape, *what)

    def drop(count: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            run(count, Path(folder) if written else None)

    return drop


ROWS: dict[str, Callable[[str], Row]] = {
    "bare": transformers_forward,
    "hidden states": partial(transformers_forward, output_hidden_states=True),
    "attentions": partial(transformers_forward, attention="eager", output_attentions=True),
    "nnsight": nnsight_trace,
    "float32": lambda shape: ours(shape, "float32", "resid_post", THREE),
    "bfloat16": lambda shape: ours(shape, "bfloat16", "resid_post", THREE, "float16"),
    "float32, not written": lambda shape: ours(shape, "float32", "resid_post", THREE, written=False),
    "bfloat16, not written": lambda shape: ours(
        shape, "bfloat16", "resid_post", THREE, "float16", written=False
    ),
    "float32, to layer 5": lambda shape: ours(shape, "float32", "resid_post", TO_FIVE),
    "float32, patterns": lambda shape: ours(shape, "float32", "pattern", ALL, written=False),
    "bfloat16, patterns": lambda shape: ours(shape, "bfloat16", "pattern", ALL, "float16", written=False),
    "small": lambda shape: ours(shape, "float32", "resid_post", (0, 1, 3)),
}


def main(name: str, shape: str) -> None:
    """Serve one row."""
    run = ROWS[name](shape)
    run(BATCH)
    print("ready", flush=True)
    for line in sys.stdin:
        run(int(line))
        print(peak_memory() / 2**20, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
