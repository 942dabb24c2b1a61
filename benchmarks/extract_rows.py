"""What ``benchmarks.extract`` times: every row in a process of its own, with settings and memory of its own.

``python -m benchmarks.extract_rows ROW SHAPE`` says "ready"; for each number of images on its input it goes
through as many and says the most memory that the process ever had, in MB.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, CLIPVisionConfig, CLIPVisionModel

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


class _Enough(Exception):
    """The last layer asked for has been read."""


def residual_reader(model: nn.Module, layers: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """A function from pixels to ``resid_post`` of the layers, (image, layer, token, d_model)."""
    seen: dict[int, Tensor] = {}

    def keep(_module: nn.Module, _arguments: Any, output: Tensor, layer: int) -> None:
        seen[layer] = output
        if layer == max(layers):
            raise _Enough

    for layer in layers:
        model.encoder.layers[layer].register_forward_hook(partial(keep, layer=layer))

    def read(pixels: Tensor) -> Tensor:
        with suppress(_Enough), torch.inference_mode():
            model(pixels)
        return torch.stack([seen[layer] for layer in layers], dim=1)

    return read


def pattern_reader(model: nn.Module, layers: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """A function from pixels to ``pattern`` of all layers, (image, layer, head, query_token, key_token)."""
    from prisma_steps.models.fast_inference import matmul

    seen: list[Tensor] = []

    def attend(
        _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: None, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        scores = matmul(query, key.mT).mul_(scaling)
        seen.append(scores.softmax(-1, dtype=torch.float32).to(query.dtype))
        return matmul(seen[-1], value).transpose(1, 2).contiguous(), None

    AttentionInterface.register("pattern_reader", attend)
    model.set_attn_implementation("pattern_reader")

    def read(pixels: Tensor) -> Tensor:
        seen.clear()
        with torch.inference_mode():
            model(pixels)
        return torch.stack([seen[layer] for layer in layers], dim=1)

    return read


READERS = {"resid_post": residual_reader, "pattern": pattern_reader}
DIMS = {"resid_post": ("token", "d_model"), "pattern": ("head", "query_token", "key_token")}

#: Goes through so many images and writes what it reads into a folder, or nowhere.
Extraction = Callable[[int, Path | None], None]


def extraction(shape: str, dtype: str, site: str, layers: Sequence[int]) -> Extraction:
    """THE SEAM: does what the step ``extract_activations`` will do with models of ``transformers``."""
    import dask.array as da
    import xarray as xr

    from prisma_steps.datasets import write_blocks
    from prisma_steps.models.fast_inference import for_inference, reused_memory
    from prisma_steps.step import Blocks

    pixels = batch().to(getattr(torch, dtype))
    read = READERS[site](for_inference(random_model(shape), dtype), layers)
    dims, sizes = ("image", "layer", *DIMS[site]), read(pixels[:1]).shape[1:]

    def make(_where: slice) -> xr.Dataset:
        return xr.Dataset({site: (dims, read(pixels).float().numpy())})

    def run(count: int, folder: Path | None) -> None:
        with reused_memory():
            if folder is None:
                for _ in range(count // BATCH):
                    make(slice(0))
                return
            template = xr.Dataset({site: (dims, da.zeros((count, *sizes), dtype="float32"))})
            blocks = Blocks(template, BATCH, make)
            write_blocks(blocks, folder / "data.zarr", folder / "state.json", lambda *_: None)

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
    "bfloat16": lambda shape: ours(shape, "bfloat16", "resid_post", THREE),
    "float32, not written": lambda shape: ours(shape, "float32", "resid_post", THREE, written=False),
    "float32, to layer 5": lambda shape: ours(shape, "float32", "resid_post", TO_FIVE),
    "float32, patterns": lambda shape: ours(shape, "float32", "pattern", ALL),
    "bfloat16, patterns": lambda shape: ours(shape, "bfloat16", "pattern", ALL),
    "small": lambda shape: ours(shape, "float32", "resid_post", (0, 1, 3)),
}


def main(name: str, shape: str) -> None:
    """Serve one row."""
    run = ROWS[name](shape)
    run(BATCH)
    print("ready", flush=True)
    for line in sys.stdin:
        run(int(line))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
