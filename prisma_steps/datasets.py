"""How labelled data lie on disk: Zarr 3, sharded, compressed, consolidated, and byte-reproducible."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.config
import numpy as np
import xarray as xr
import zarr
from zarr.codecs import BloscCodec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prisma_steps.step import Blocks

# Without this, arithmetic on differently labelled data silently keeps only the labels in common.
xr.set_options(arithmetic_join="exact")

#: A chunk is what one read decompresses, a shard is one file.
CHUNK_BYTES = 2**20
SHARD_BYTES = 2**27

#: Data that come in blocks are written so much at once. While it is written the next of it is made: both are
#: in memory.
SECTION_BYTES = 2**26

# Floats hardly compress: of Gaussian float16 and float32 zstd (level 3) takes away 8 % and 10 % at 520 and
# 190 MB/s, which would slow down the computation beside it; of lz4 little is felt at 800 to 2,200 MB/s, read
# at 2,500 to 6,500 instead of 800 MB/s, and sparse floats it still takes down to 0.44 (zstd: 0.27, at
# 80 MB/s). One core, chunks of 1 MiB.
_FLOATS = BloscCodec(cname="lz4", clevel=5, shuffle="shuffle")
_OTHERS = BloscCodec(cname="zstd", clevel=3, shuffle="shuffle")

#: Dimensions read one index at a time: an SAE reads one layer, a figure one head's pattern of one layer.
_READ_SINGLY = ("layer",)


@contextmanager
def _no_format_warning() -> Iterator[None]:
    """Consolidated metadata work in zarr-python but are not in the Zarr 3 specification yet; zarr says so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata", category=UserWarning)
        yield


def use_threads(count: int) -> None:
    """Have reading and writing take at most ``count`` threads, beside a computation with as many of its own.

    Zarr makes its threads once, so that this comes before anything is read; Blosc makes none within them.
    """
    zarr.config.set({"threading.max_workers": count})
    dask.config.set(num_workers=count)


def layout(
    shape: Sequence[int], dims: Sequence[str], itemsize: int, rows: int | None = None
) -> tuple[list[int], list[int]]:
    """Chunk and shard shape of a variable.

    Args:
        shape: size along each dimension.
        dims: names of the dimensions; only the first and those read singly are cut.
        itemsize: bytes of one number.
        rows: indices of the first dimension in a shard; as many as ``SHARD_BYTES`` holds if None.

    Returns:
        (chunk, shard), the shard a multiple of the chunk along every dimension.
    """
    chunk = [1 if dim in _READ_SINGLY else size for dim, size in zip(dims, shape, strict=True)]
    row = itemsize * math.prod(chunk[1:])
    chunk[0] = max(1, min(chunk[0], CHUNK_BYTES // row))
    if rows is not None:
        chunk[0] = next(size for size in range(min(chunk[0], rows), 0, -1) if rows % size == 0)
        return chunk, [rows, *chunk[1:]]
    whole = math.ceil(shape[0] / chunk[0])
    units = whole if whole * chunk[0] * row <= SHARD_BYTES else max(1, SHARD_BYTES // row // chunk[0])
    return chunk, [units * chunk[0], *chunk[1:]]


def _encoding(data: xr.Dataset, in_sections: Sequence[Any] = (), rows: int = 0) -> dict[str, Any]:
    """How each variable is stored; those of ``in_sections`` in shards of ``rows`` images."""
    encoding = {}
    for name, variable in data.variables.items():
        if variable.ndim == 0 or 0 in variable.shape or variable.dtype.kind in "UOT":
            continue
        dims, itemsize = list(map(str, variable.dims)), variable.dtype.itemsize
        chunk, shard = layout(variable.shape, dims, itemsize, rows if name in in_sections else None)
        compressor = _FLOATS if variable.dtype.kind == "f" else _OTHERS
        encoding[str(name)] = {"chunks": chunk, "shards": shard, "compressors": [compressor]}
    return encoding


def _storable(data: xr.Dataset) -> xr.Dataset:
    """``data`` without the encoding of where it came from, strings as Zarr 3 specifies them."""
    data = data.drop_encoding()
    strings = {
        name: (variable.dims, variable.values.astype(np.dtypes.StringDType()), variable.attrs)
        for name, variable in data.variables.items()
        if variable.dtype.kind in "UO"
    }
    return data.assign_coords({name: value for name, value in strings.items() if name in data.coords}).assign(
        {name: value for name, value in strings.items() if name not in data.coords}
    )


def write(data: xr.Dataset, path: Path) -> None:
    """Write a Dataset that fits in memory, or is lazy, to ``path``."""
    data = _storable(data)
    with _no_format_warning():
        data.to_zarr(path, mode="w", zarr_format=3, consolidated=True, encoding=_encoding(data))


def write_blocks(blocks: Blocks, path: Path, state: Path, report: Callable[[int, int, str], None]) -> None:
    """Write data that come in blocks along ``image``, going on after the last section that ``state`` names.

    Blocks are gathered to sections, the images of one shard: a shard written in parts would be read and
    written again for each of them. One thread writes a section while the next one is made. What goes wrong in
    it is raised here, after the block that is being made just then.
    """
    template = _storable(blocks.template)
    total = template.sizes["image"]
    names = [name for name, variable in template.data_vars.items() if variable.dims[:1] == ("image",)]
    rows = _section([template[name] for name in names], blocks.size)
    start = _go_on_from(state) if (path / "zarr.json").exists() else 0
    # The filter is set once for both threads: the list of filters is theirs together.
    with _no_format_warning(), ThreadPoolExecutor(1, "section") as writer:
        if start == 0:
            _write_template(template, path, _encoding(template, names if rows < total else (), rows))
        for left in path.rglob("*.partial"):  # what Zarr was writing when it was killed
            left.unlink()
        writing: Future[None] | None = None
        for begin in range(start, total, rows):
            section = slice(begin, min(begin + rows, total))
            made = _make(blocks, template[names], section, report, writing)
            if writing is not None:
                writing.result()
            writing = writer.submit(_write_section, made, path, section, state)
            del made  # the writer lets go of it when it is written
        if writing is not None:
            writing.result()
    report(total, total, "")


def _section(variables: Sequence[xr.DataArray], block: int) -> int:
    """Images that are written at once: whole blocks, as many as ``SECTION_BYTES`` holds, at least one."""
    per_image = sum(variable.dtype.itemsize * math.prod(variable.shape[1:]) for variable in variables)
    return block * max(1, SECTION_BYTES // max(1, per_image * block))


def _write_template(template: xr.Dataset, path: Path, encoding: Mapping[str, Any]) -> None:
    """Write what is known beforehand. The rest is not computed, so that its dask chunks need not fit."""
    options: dict[str, Any] = {"zarr_format": 3, "consolidated": True, "safe_chunks": False}
    template.to_zarr(path, mode="w", encoding=encoding, compute=False, **options)


def _make(
    blocks: Blocks,
    template: xr.Dataset,
    section: slice,
    report: Callable[[int, int, str], None],
    writing: Future[None] | None,
) -> xr.Dataset:
    """The data of a section, its blocks side by side in one place; a section of one block is that block."""
    total, size = template.sizes["image"], section.stop - section.start
    whole = None
    for begin in range(section.start, section.stop, blocks.size):
        if writing is not None and writing.done():
            writing.result()  # raises what went wrong in it
        report(begin, total, "")
        where = slice(begin, min(begin + blocks.size, section.stop))
        block = blocks.make(where)[list(template)]
        block = block.drop_vars(list(block.coords))
        if where == section:
            return block
        whole = _empty(block, size) if whole is None else whole
        for name in whole:
            place = {"image": slice(where.start - section.start, where.stop - section.start)}
            whole[name].variable[place] = block[name].variable
    assert whole is not None
    return whole


def _empty(block: xr.Dataset, size: int) -> xr.Dataset:
    """Room for ``size`` images like those of ``block``."""
    return xr.Dataset(
        {
            name: (variable.dims, np.empty((size, *variable.shape[1:]), variable.dtype))
            for name, variable in block.data_vars.items()
        }
    )


def _write_section(made: xr.Dataset, path: Path, section: slice, state: Path) -> None:
    """Write a section, and only then note that the next one is to be made."""
    # Zarr would look through every chunk for one that holds nothing but the fill value, which takes longer
    # than all the rest: 6 ms for a MiB of float16.
    options: dict[str, Any] = {"consolidated": True, "write_empty_chunks": True}
    # One shard after the other: each is in memory three times over while it is put together.
    with zarr.config.set({"async.concurrency": 1}):
        made.drop_encoding().to_zarr(path, region={"image": section}, **options)
    unfinished = state.with_suffix(".unfinished")
    unfinished.write_text(json.dumps({"next": section.stop}))
    unfinished.replace(state)


def _go_on_from(state: Path) -> int:
    """The first image that is not written; 0 when there is nothing, or nothing legible, to go on from."""
    try:
        return int(json.loads(state.read_text())["next"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0


def open_dataset(path: Path) -> xr.Dataset:
    """Open stored data as arrays that are read when they are indexed."""
    return xr.open_zarr(path, chunks=None, consolidated=True, zarr_format=3)


def open_lazily(path: Path) -> xr.Dataset:
    """Open stored data as dask arrays, a shard a piece: chunk by chunk they are read at half the speed."""
    data = open_dataset(path)
    pieces = {
        name: dict(zip(variable.dims, variable.encoding.get("shards") or variable.shape, strict=True))
        for name, variable in data.data_vars.items()
    }
    return data.assign({name: data[name].chunk(sizes) for name, sizes in pieces.items()})


def describe(data: xr.Dataset) -> dict[str, Any]:
    """Dims, coords, variables and attributes, for the manifest."""
    return {
        "dims": {str(dim): size for dim, size in data.sizes.items()},
        "attrs": dict(data.attrs),
        "coords": {str(name): list(map(str, coord.dims)) for name, coord in data.coords.items()},
        "variables": {
            str(name): {"dims": list(map(str, variable.dims)), "dtype": str(variable.dtype)}
            for name, variable in data.data_vars.items()
        },
    }
