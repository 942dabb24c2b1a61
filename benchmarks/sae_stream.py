"""Whether training tokens read from a store come as fast as from memory.

The files are in the page cache of the system: what is measured is what reading takes away from a computation
that has all processors to itself, not the disk.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from benchmarks.timing import interleaved, report_speed
from prisma_steps.datasets import open_dataset, use_threads, write_blocks
from prisma_steps.sae.order import Batches
from prisma_steps.sae.stored import StoredTokens
from prisma_steps.sae.stream import TokenStream
from prisma_steps.step import Blocks

#: Activations of a ViT-B/32 in float32: 50 tokens an image, 307,200 in all, 0.94 GB, four times the buffer.
N_IMAGES, N_TOKENS, D_MODEL = 6_144, 50, 768
BUFFER_TOKENS = N_IMAGES * N_TOKENS // 4
BATCH = 4096
#: What a fast trainer of 12,288 latents does on two cores.
TOKENS_PER_SECOND = 20_000

Train = Callable[[Tensor], None]


def benchmark() -> bool:
    """Run it; False when a limit is missed."""
    use_threads(torch.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        values = _stored(Path(folder))
        table = torch.from_numpy(values.values).flatten(0, 1)
        train = _trainer(table[:BATCH].clone())
        candidates = {
            "memory": lambda: _from_memory(table, train),
            "store": lambda: _from_store(values, train),
        }
        times = interleaved(candidates, rounds=3)
    for name, seconds in times.items():
        print(f"{name:<24} {len(table) / seconds:8,.0f} tokens/s")
    return report_speed("tokens from a store / from memory", times["store"], times["memory"], 0.95)


def _stored(folder: Path) -> xr.DataArray:
    """Random activations of two layers, of which one is read, as extraction leaves them."""
    dims = ("image", "layer", "token", "d_model")
    block = np.random.default_rng(0).standard_normal((256, 2, N_TOKENS, D_MODEL), np.float32)
    lazy = xr.Variable(dims, block).chunk()
    template = xr.Dataset({"resid_post": xr.Variable.concat([lazy] * (N_IMAGES // 256), "image")})
    coords = {
        "image": [f"{number:06}" for number in range(N_IMAGES)],
        "layer": [3, 7],
        "token_kind": ("token", np.array(["cls"] + ["patch"] * (N_TOKENS - 1))),
    }

    def make(where: slice) -> xr.Dataset:
        return xr.Dataset({"resid_post": (dims, block[: where.stop - where.start])})

    blocks = Blocks(template.assign_coords(coords), 256, make)
    write_blocks(blocks, folder / "data.zarr", folder / "state.json", lambda *_: None)
    return open_dataset(folder / "data.zarr")["resid_post"].sel(layer=7)


def _trainer(batch: Tensor) -> Train:
    """A load of matrix products that by itself takes about ``TOKENS_PER_SECOND``."""
    weights = torch.randn(D_MODEL, 2 * D_MODEL, generator=torch.Generator().manual_seed(0)) / D_MODEL**0.5

    def products(x: Tensor, count: int) -> None:
        for _ in range(count):
            torch.relu(x @ weights) @ weights.T

    products(batch, 4)
    began = time.perf_counter()
    products(batch, 16)
    one = (time.perf_counter() - began) / 16
    count = max(1, round(len(batch) / TOKENS_PER_SECOND / one))
    return lambda x: products(x, count)


def _from_memory(table: Tensor, train: Train) -> None:
    batches, order = Batches(len(table), len(table), BATCH), torch.randperm(len(table))
    for index in range(batches.n_batches):
        _, start, stop = batches.place(index)
        train(table[order[start:stop]])


def _from_store(values: xr.DataArray, train: Train) -> None:
    for x in _served(StoredTokens([values], "all")):
        train(x)


def _served(stored: StoredTokens) -> Iterator[Tensor]:
    options = {"n_served": len(stored), "batch_size": BATCH, "buffer_tokens": BUFFER_TOKENS, "seed": 0}
    with TokenStream(stored, **options) as stream:
        for index in range(stream.n_batches):
            (x,) = stream.batch(index)
            yield x
