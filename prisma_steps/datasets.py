"""How labelled data lie on disk: Zarr 3, sharded, compressed, consolidated, and byte-reproducible."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from zarr.codecs import BloscCodec

from prisma_steps.axes import Axis

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prisma_steps.step import Blocks

# Without this, arithmetic on differently labelled data silently keeps only the labels in common.
xr.set_options(arithmetic_join="exact")

#: A chunk is what one read decompresses, a shard is one file.
CHUNK_BYTES = 2**20
SHARD_BYTES = 2**27

#: Dimensions read one index at a time: an SAE reads one layer, a figure one head's pattern of one layer.
_READ_SINGLY = ("layer",)


@contextmanager
def _no_format_warning() -> Iterator[None]:
    """Consolidated metadata work in zarr-python but are not in the Zarr 3 specification yet; zarr says so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata", category=UserWarning)
        yield


def layout(
    shape: Sequence[int], dims: Sequence[str], itemsize: int, block: int = 1
) -> tuple[list[int], list[int]]:
    """Chunk and shard shape of a variable.

    Args:
        shape: size along each dimension.
        dims: names of the dimensions; only the first and those read singly are cut.
        itemsize: bytes of one number.
        block: indices of the first dimension that are written at once; a shard is a multiple of it.

    Returns:
        (chunk, shard), the shard a multiple of the chunk along every dimension.
    """
    chunk = [1 if dim in _READ_SINGLY else size for dim, size in zip(dims, shape, strict=True)]
    row = itemsize * math.prod(chunk[1:])
    chunk[0] = max(1, min(shape[0], CHUNK_BYTES // row)) if chunk[0] > 1 else chunk[0]
    chunk[0] = _fitting(chunk[0], block)
    unit = max(chunk[0], block)
    whole = math.ceil(shape[0] / unit)
    units = whole if whole * unit * row <= SHARD_BYTES else max(1, SHARD_BYTES // row // unit)
    return chunk, [units * unit, *chunk[1:]]


def _fitting(chunk: int, block: int) -> int:
    """The largest number up to ``chunk`` that divides ``block`` or is a multiple of it."""
    if chunk >= block:
        return chunk // block * block
    return next(size for size in range(chunk, 0, -1) if block % size == 0)


def _encoding(data: xr.Dataset, block: int = 1) -> dict[str, dict[str, Any]]:
    compressor = BloscCodec(cname="zstd", clevel=3, shuffle="shuffle")
    encoding = {}
    for name, variable in data.variables.items():
        if variable.ndim == 0 or 0 in variable.shape or variable.dtype.kind in "UOT":
            continue
        cut = block if "image" in variable.dims else 1
        chunk, shard = layout(variable.shape, list(map(str, variable.dims)), variable.dtype.itemsize, cut)
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
    """Write data that come in blocks along ``image``, going on after the last shard that ``state`` names.

    Blocks are gathered to whole shards before they are written: a shard written in parts would be read and
    written again for each of them.
    """
    template = _storable(blocks.template)
    encoding = _encoding(template, blocks.size)
    total = template.sizes["image"]
    names = [name for name, variable in template.data_vars.items() if "image" in variable.dims]
    rows = min(
        (encoding[str(name)]["shards"][0] for name in names if str(name) in encoding), default=blocks.size
    )
    encoding = {name: _with_rows(entry, rows, template[name]) for name, entry in encoding.items()}
    start = _go_on_from(state) if (path / "zarr.json").exists() else 0
    if start == 0:
        with _no_format_warning():
            template.to_zarr(
                path, mode="w", zarr_format=3, consolidated=True, encoding=encoding, compute=False
            )
    for left in path.rglob("*.partial"):  # what Zarr was writing when it was killed
        left.unlink()
    for begin in range(start, total, rows):
        end = min(begin + rows, total)
        _write_region(blocks, names, path, slice(begin, end), total, report)
        unfinished = state.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({"next": end}))
        unfinished.replace(state)


def _go_on_from(state: Path) -> int:
    """The first image that is not written; 0 when there is nothing, or nothing legible, to go on from."""
    try:
        return int(json.loads(state.read_text())["next"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0


def _with_rows(entry: dict[str, Any], rows: int, variable: xr.DataArray) -> dict[str, Any]:
    if variable.dims[:1] != ("image",):
        return entry
    chunk = math.gcd(entry["chunks"][0], rows)
    return {**entry, "chunks": [chunk, *entry["chunks"][1:]], "shards": [rows, *entry["shards"][1:]]}


def _write_region(
    blocks: Blocks,
    names: Sequence[Any],
    path: Path,
    region: slice,
    total: int,
    report: Callable[[int, int, str], None],
) -> None:
    made = []
    for begin in range(region.start, region.stop, blocks.size):
        report(begin, total, "")
        part = blocks.make(slice(begin, min(begin + blocks.size, region.stop)))[names]
        made.append(part.drop_vars(list(part.coords)))
    whole = xr.concat(made, dim="image") if len(made) > 1 else made[0]
    with _no_format_warning():
        whole.drop_encoding().to_zarr(path, region={"image": region}, consolidated=True)
    report(region.stop, total, "")


def open_dataset(path: Path, chunks: dict[str, int] | None = None) -> xr.Dataset:
    """Open stored data lazily: as arrays read when indexed, or as dask arrays when ``chunks`` is given."""
    return xr.open_zarr(path, chunks=chunks, consolidated=True, zarr_format=3)


def combine(parts: Sequence[xr.Dataset], axes: Sequence[Axis]) -> xr.Dataset:
    """The points of a grid as one hypercube.

    Args:
        parts: one Dataset a point, the last axis fastest.
        axes: the grid.

    Returns:
        A Dataset with every axis as a leading dimension. Where a dimension of the parts differs between
        points (the layers of deeper and shallower models), it is their union and the rest is missing.
    """
    if not axes:
        return parts[0]
    coords = _grid_coords(axes, {str(dim) for part in parts for dim in part.dims})
    taken = {*coords, *(name for axis in axes for name in axis.coords)}
    parts = [part.drop_vars([name for name in part.coords if name in taken]) for part in parts]
    for axis in reversed(axes):
        size = len(axis)
        parts = [
            xr.concat(
                parts[start : start + size],
                dim=axis.name,
                data_vars="all",
                coords="different",
                compat="equals",
                join="outer",
                combine_attrs="drop_conflicts",
            )
            for start in range(0, len(parts), size)
        ]
    combined = parts[0].assign_coords(coords)
    for name in coords:
        combined[name].attrs.update(long_name=name.replace("_", " "), units="1")
    return combined


def _grid_coords(axes: Sequence[Axis], dims: set[str]) -> dict[str, tuple[str, list[Any]]]:
    """Coordinates along the axes. One named as a dimension of the data has its axis's name put before it."""
    coords: dict[str, tuple[str, list[Any]]] = {
        axis.name: (axis.name, list(range(len(axis)))) for axis in axes
    }
    for axis in axes:
        for name, values in axis.coords.items():
            coords[f"{axis.name}_{name}" if name in dims else name] = (axis.name, list(values))
    return coords


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
