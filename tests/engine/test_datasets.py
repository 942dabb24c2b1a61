from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prisma_steps import datasets
from prisma_steps.axes import Axis
from prisma_steps.datasets import describe, layout, open_dataset, open_lazily, write, write_blocks
from prisma_steps.hypercube import combine
from prisma_steps.step import Blocks, StepError
from prisma_steps.store import content_digest

DIMS = ("image", "layer", "token", "d_model")
SHARED_FOLDER = settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

values = {
    "float32": st.floats(width=32),
    "float64": st.floats(),
    "float16": st.floats(width=16),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint8": st.integers(0, 255),
    "bool": st.booleans(),
    "str": st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5),
}


@st.composite
def labelled(draw: st.DrawFn) -> xr.Dataset:
    """Datasets of every dtype that an artifact may hold, with dims of any length and none at all."""
    sizes = {dim: draw(st.integers(0, 4)) for dim in DIMS}

    def variable(dims: tuple[str, ...]) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
        dtype = draw(st.sampled_from(sorted(values)))
        count = math.prod(sizes[dim] for dim in dims)
        found = draw(st.lists(values[dtype], min_size=count, max_size=count))
        array = np.array(found, dtype="<U5" if dtype == "str" else dtype)
        return dims, array.reshape([sizes[dim] for dim in dims]), {"long_name": dtype, "units": "1"}

    some_dims = st.lists(st.sampled_from(DIMS), unique=True).map(tuple)
    names = draw(st.lists(st.sampled_from("abc"), unique=True, min_size=1))
    coords: dict[str, Any] = {f"coord_{dim}": variable((dim,)) for dim in DIMS if draw(st.booleans())}
    if draw(st.booleans()):
        coords["image"] = ("image", [f"image-{i}é" for i in range(sizes["image"])])
    data = xr.Dataset({name: variable(draw(some_dims)) for name in names}, coords, {"title": "x", "k": 3})
    return data.drop_vars([name for name in data.coords if set(data[name].dims) - set(data.dims)])


def same(found: xr.Dataset, expected: xr.Dataset) -> None:
    """The same labels, attributes and values, bit for bit; strings may be held otherwise."""
    xr.testing.assert_identical(found.load(), expected)
    for name, variable in expected.variables.items():
        if variable.dtype.kind not in "UOT":
            assert found[name].dtype == variable.dtype


@SHARED_FOLDER
@given(labelled())
def test_what_is_written_is_read_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, data: xr.Dataset
) -> None:
    folder = tmp_path_factory.mktemp("round")
    write(data, folder / "one" / "data.zarr")
    write(data.copy(deep=True), folder / "two" / "data.zarr")
    same(open_dataset(folder / "one" / "data.zarr"), data)
    same(open_lazily(folder / "one" / "data.zarr"), data)
    assert content_digest(folder / "one") == content_digest(folder / "two")
    # Read and written again, it is the same content still.
    write(open_dataset(folder / "one" / "data.zarr"), folder / "three" / "data.zarr")
    assert content_digest(folder / "one") == content_digest(folder / "three")


def test_one_value_more_or_less_is_another_digest(tmp_path: Path) -> None:
    data = xr.Dataset({"a": ("image", np.arange(5.0))})
    for name, changed in {"as it is": data, "value": data + 1e-16, "bit": data * (1 + 2**-52)}.items():
        write(changed, tmp_path / name / "data.zarr")
    write(data.assign_attrs(k=1), tmp_path / "attribute" / "data.zarr")
    digests = {folder.name: content_digest(folder) for folder in tmp_path.iterdir()}
    assert len(set(digests.values())) == 4


def test_it_is_zarr_3_sharded_compressed_and_consolidated(tmp_path: Path) -> None:
    data = {"a": (("image", "token"), np.zeros((3000, 500))), "b": ("image", np.arange(3000))}
    write(xr.Dataset(data), tmp_path / "x.zarr")
    group = json.loads((tmp_path / "x.zarr/zarr.json").read_text())
    assert group["zarr_format"] == 3
    for name, compressor in {"a": "lz4", "b": "zstd"}.items():
        array = group["consolidated_metadata"]["metadata"][name]
        assert array["codecs"][0]["name"] == "sharding_indexed"
        assert array["codecs"][0]["configuration"]["codecs"][-1]["configuration"]["cname"] == compressor
    assert len([file for file in (tmp_path / "x.zarr/a").rglob("*") if file.is_file()]) == 2


# --- layout

shapes = st.lists(
    st.tuples(st.sampled_from(DIMS), st.integers(1, 3000)), min_size=1, max_size=4, unique_by=lambda x: x[0]
)


@given(shapes, st.sampled_from([1, 2, 4, 8]), st.none() | st.integers(1, 5000))
def test_a_shard_is_a_multiple_of_the_chunk(shape, itemsize: int, rows: int | None) -> None:
    dims, sizes = zip(*shape, strict=True)
    chunk, shard = layout(sizes, dims, itemsize, rows)
    assert all(part >= 1 and whole % part == 0 for part, whole in zip(chunk, shard, strict=True))
    assert rows is None or shard[0] == rows
    assert (
        shard[1:]
        == chunk[1:]
        == [1 if dim == "layer" else size for dim, size in zip(dims[1:], sizes[1:], strict=True)]
    )
    row = itemsize * math.prod(chunk[1:])
    assert chunk[0] * row <= max(datasets.CHUNK_BYTES, row), "one read stays small"
    if rows is None:
        assert sizes[0] * row > datasets.SHARD_BYTES or shard[0] >= sizes[0], "one file if it can be"
        assert shard[0] * row <= max(datasets.SHARD_BYTES, row), "one file stays within memory"


def test_activations_are_cut_for_reading_one_layer() -> None:
    chunk, shard = layout((10_000, 12, 65, 64), ("image", "layer", "token", "d_model"), 4, rows=256)
    assert (chunk, shard) == ([32, 1, 65, 64], [256, 1, 65, 64])


# --- blocks


def blocks(
    data: xr.Dataset, size: int, before: Callable[[slice], None] = lambda _: None
) -> tuple[Blocks, list[slice]]:
    made: list[slice] = []

    def make(where: slice) -> xr.Dataset:
        before(where)
        made.append(where)
        return data.isel(image=where)

    lazy = {
        name: (variable.dims, da.zeros(variable.shape, dtype=variable.dtype), variable.attrs)
        for name, variable in data.data_vars.items()
        if "image" in variable.dims
    }
    return Blocks(data.assign(lazy), size, make), made


def silent(_done: int, _total: int, _note: str) -> None:
    """Tell nobody."""


def activations(count: int) -> xr.Dataset:
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            "resid_post": (
                ("image", "layer", "token"),
                rng.normal(size=(count, 2, 3)).astype("float32"),
                {"units": "1"},
            ),
            "logits": (("image", "class"), rng.normal(size=(count, 2))),
            "scale": ("layer", [1.0, 2.0]),
        },
        {
            "image": [f"i{n}" for n in range(count)],
            "layer": [0, 3],
            "label": ("image", np.arange(count)),
            "class_name": ("class", ["a", "b"]),
        },
    )


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A section, and with it a shard, of at most eight images, chunks of two."""
    monkeypatch.setattr(datasets, "SECTION_BYTES", 8 * (2 * 3 * 4 + 2 * 8))
    monkeypatch.setattr(datasets, "CHUNK_BYTES", 2 * 3 * 4)


@SHARED_FOLDER
@given(count=st.integers(1, 40), size=st.integers(1, 12))
@pytest.mark.usefixtures("small_shards")
def test_blocks_are_the_whole_and_each_is_made_once(tmp_path_factory, count: int, size: int) -> None:
    folder, data = tmp_path_factory.mktemp("blocks"), activations(count)
    made_of, made = blocks(data, size)
    write_blocks(made_of, folder / "data.zarr", folder / "state.json", silent)
    same(open_dataset(folder / "data.zarr"), data)
    assert [i for where in made for i in range(count)[where]] == list(range(count))
    assert all(where.stop - where.start <= size for where in made)


@pytest.mark.parametrize("size", [3, 8, 100])
@pytest.mark.usefixtures("small_shards")
def test_an_interruption_at_any_block_leaves_the_same_bytes_in_the_end(tmp_path: Path, size: int) -> None:
    data = activations(29)
    whole, made = blocks(data, size)
    write_blocks(whole, tmp_path / "whole/data.zarr", tmp_path / "whole.json", silent)
    starts = [where.start for where in made]
    for stop in starts:

        def fail_once(where: slice, stop: int = stop) -> None:
            if where.start == stop and not (tmp_path / f"failed{stop}").exists():
                (tmp_path / f"failed{stop}").touch()
                raise KeyboardInterrupt

        folder, state = tmp_path / str(stop), tmp_path / f"{stop}.json"
        again, remade = blocks(data, size, fail_once)
        with pytest.raises(KeyboardInterrupt):
            write_blocks(again, folder / "data.zarr", state, silent)
        done = len(remade)
        # Zarr writes beside the final name first: a kill leaves such a file behind.
        (folder / "data.zarr/resid_post/zarr.0123.partial").touch()
        write_blocks(again, folder / "data.zarr", state, silent)
        assert content_digest(folder) == content_digest(tmp_path / "whole")
        assert remade[done].start <= stop, "goes on, at the last whole shard"
        if stop >= 16:
            assert remade[done].start > 0, "does not begin anew"


@pytest.mark.usefixtures("small_shards")
def test_an_interruption_while_a_shard_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = activations(29)
    whole, _ = blocks(data, 4)
    write_blocks(whole, tmp_path / "whole/data.zarr", tmp_path / "whole.json", silent)
    real, calls = xr.Dataset.to_zarr, []

    def half(self: xr.Dataset, *args: Any, **options: Any) -> Any:
        calls.append(1)
        found = real(self, *args, **options)
        if len(calls) == 3:
            raise OSError("no space left")
        return found

    monkeypatch.setattr(xr.Dataset, "to_zarr", half)
    with pytest.raises(OSError, match="no space"):
        write_blocks(whole, tmp_path / "half/data.zarr", tmp_path / "half.json", silent)
    write_blocks(whole, tmp_path / "half/data.zarr", tmp_path / "half.json", silent)
    assert content_digest(tmp_path / "half") == content_digest(tmp_path / "whole")


# --- a section is written while the next one is made


@pytest.fixture
def writing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[slice], None]], None]:
    """Has a function called in the thread that writes, before each section is written."""
    real = datasets._write_section

    def call(before: Callable[[slice], None]) -> None:
        def write(made: xr.Dataset, path: Path, section: slice, state: Path) -> None:
            before(section)
            real(made, path, section, state)

        monkeypatch.setattr(datasets, "_write_section", write)

    return call


@pytest.mark.usefixtures("small_shards")
def test_a_section_is_written_while_the_next_is_made_and_no_more_is_kept(tmp_path: Path, writing) -> None:
    begun = {start: threading.Event() for start in range(0, 40, 8)}
    written: list[int] = []

    def make(where: slice) -> None:
        begun[where.start].set()
        assert len(written) >= where.start // 8 - 2, "two sections besides the one being made"

    def write(section: slice) -> None:
        following = begun.get(section.stop)
        assert following is None or following.wait(20), "the next section waits for this one to be written"
        written.append(section.start)

    writing(write)
    whole, _ = blocks(activations(40), 8, make)
    write_blocks(whole, tmp_path / "data.zarr", tmp_path / "state.json", silent)
    assert written == [0, 8, 16, 24, 32]
    same(open_dataset(tmp_path / "data.zarr"), activations(40))


@pytest.mark.usefixtures("small_shards")
def test_what_goes_wrong_in_writing_is_raised_as_it_is_and_soon(tmp_path: Path, writing) -> None:
    failed = threading.Event()
    full = OSError(errno.ENOSPC, "No space left on device")

    def write(section: slice) -> None:
        if section.start == 8:
            failed.set()
            raise full

    def make(where: slice) -> None:
        if where.start == 16:
            assert failed.wait(20)
            time.sleep(0.1)  # until the failure is noted where it is looked for

    writing(write)
    whole, made = blocks(activations(40), 2, make)
    with pytest.raises(OSError, match="No space left") as raised:
        write_blocks(whole, tmp_path / "data.zarr", tmp_path / "state.json", silent)
    assert raised.value is full
    assert made[-1].start == 16, "the block that was being made, and no more"
    assert json.loads((tmp_path / "state.json").read_text()) == {"next": 8}


@pytest.mark.usefixtures("small_shards")
def test_an_interruption_lets_the_section_be_written_and_leaves_no_thread(tmp_path: Path, writing) -> None:
    interrupted = threading.Event()

    def make(where: slice) -> None:
        if where.start == 16:
            interrupted.set()
            raise KeyboardInterrupt

    writing(lambda section: section.start == 8 and interrupted.wait(20))
    whole, _ = blocks(activations(40), 8, make)
    with pytest.raises(KeyboardInterrupt):
        write_blocks(whole, tmp_path / "data.zarr", tmp_path / "state.json", silent)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("section")]
    assert json.loads((tmp_path / "state.json").read_text()) == {"next": 16}


KILLED = """
import os, signal, sys
from pathlib import Path
from prisma_steps import datasets
from tests.engine.test_datasets import activations, blocks, silent

datasets.SECTION_BYTES, datasets.CHUNK_BYTES = {bytes}
real, file, before = Path.replace, sys.argv[2], int(sys.argv[3])

def replace(self, target):
    global before
    if file in str(target):
        before -= 1
        if before == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return real(self, target)

Path.replace = replace
folder = Path(sys.argv[1])
datasets.write_blocks(blocks(activations(29), 4)[0], folder / "data/data.zarr", folder / "state.json", silent)
"""


@pytest.mark.parametrize(
    ("file", "at", "noted"), [("resid_post/c/", 1, 0), ("resid_post/c/", 4, 8), ("state.json", 2, 8)]
)
@pytest.mark.usefixtures("small_shards")
def test_killed_while_a_section_is_written(tmp_path: Path, file: str, at: int, noted: int) -> None:
    """Before a file takes its name: one of two layers of a section, or the note that a section is there."""
    root = Path(__file__).parents[2]
    code = KILLED.replace("{bytes}", repr((datasets.SECTION_BYTES, datasets.CHUNK_BYTES)))
    words = [sys.executable, "-c", code, str(tmp_path / "killed"), file, str(at)]
    (tmp_path / "killed").mkdir()
    done = subprocess.run(words, env=os.environ | {"PYTHONPATH": str(root)}, check=False)
    assert done.returncode == -signal.SIGKILL
    state = tmp_path / "killed/state.json"
    assert (json.loads(state.read_text())["next"] if state.exists() else 0) == noted
    again, made = blocks(activations(29), 4)
    write_blocks(again, tmp_path / "killed/data/data.zarr", state, silent)
    assert made[0].start == noted
    whole, _ = blocks(activations(29), 4)
    write_blocks(whole, tmp_path / "whole/data.zarr", tmp_path / "whole.json", silent)
    assert content_digest(tmp_path / "killed/data") == content_digest(tmp_path / "whole")


def test_lazy_zeros_of_the_template_need_not_fit_the_shards(tmp_path: Path) -> None:
    """Dask cuts large arrays as it likes."""
    data = xr.Dataset({"a": (("image", "token"), np.ones((1000, 7)))})
    whole, _ = blocks(data, 3)
    cut = Blocks(whole.template.assign(a=whole.template["a"].chunk(image=131)), whole.size, whole.make)
    write_blocks(cut, tmp_path / "data.zarr", tmp_path / "state.json", silent)
    same(open_dataset(tmp_path / "data.zarr"), data)


# --- a grid as one hypercube


def test_labels_must_fit_exactly() -> None:
    left = xr.DataArray([1, 2], {"image": ["a", "b"]}, ["image"])
    right = xr.DataArray([1, 2], {"image": ["b", "c"]}, ["image"])
    with pytest.raises(ValueError, match=r"(?s)exact|not equal"):
        left + right


@settings(deadline=None)
@given(st.lists(st.integers(1, 3), min_size=0, max_size=3))
def test_a_grid_is_stacked_point_by_point(sizes: list[int]) -> None:
    axes = [Axis(name, {name: tuple(range(5, 5 + size))}) for name, size in zip("abc", sizes, strict=False)]
    parts = [
        xr.Dataset({"x": ("token", np.arange(3.0) + 10 * i), "n": ((), i)}, {"token": [0, 1, 2]})
        for i in range(math.prod(sizes))
    ]
    cube = combine(parts, axes)
    assert cube["x"].dims == (*"abc"[: len(sizes)], "token")
    for i, index in enumerate(np.ndindex(*sizes)):
        point = cube.sel({axis.name: axis.coords[axis.name][j] for axis, j in zip(axes, index, strict=True)})
        assert point["n"].item() == i
        np.testing.assert_array_equal(point["x"], parts[i]["x"])


def test_a_zip_has_a_coordinate_for_every_parameter() -> None:
    size = Axis("size", {"n_layers": (1, 2), "d_model": (32, 64)})
    cube = combine([xr.Dataset({"x": ((), i)}) for i in range(2)], [size])
    assert cube["size"].values.tolist() == [0, 1]
    assert cube["d_model"].dims == ("size",)
    assert cube["x"].where(cube.n_layers == 2, drop=True).item() == 1


def test_a_parameter_named_as_a_dimension_of_the_data_stays_apart_from_it() -> None:
    size = Axis("size", {"n_layers": (1, 2), "d_model": (2, 2)})
    cube = combine([xr.Dataset({"x": ("d_model", [i, i])}) for i in range(2)], [size])
    assert cube.sizes == {"size": 2, "d_model": 2}
    assert cube["size_d_model"].values.tolist() == [2, 2]
    assert "d_model" not in cube.coords


def test_an_axis_that_the_data_have_as_a_dimension_is_refused() -> None:
    parts = [xr.Dataset({"norm_factor": ("layer", [1.0, 2.0])}) for _ in range(2)]
    with pytest.raises(StepError, match="the axis 'layer' of the grid is also a dimension of its data"):
        combine(parts, [Axis("layer", {"layer": ("0, 1", "2, 3")})])


def test_layers_that_a_shallower_model_lacks_are_missing() -> None:
    parts = [xr.Dataset({"x": ("layer", np.ones(n))}, {"layer": np.arange(n)}) for n in (1, 3)]
    cube = combine(parts, [Axis("n_layers", {"n_layers": (1, 3)})])
    np.testing.assert_array_equal(cube["x"], [[1, np.nan, np.nan], [1, 1, 1]])


def test_latents_that_a_narrower_dictionary_lacks_are_missing() -> None:
    """They have no coordinate of their own, and are told by their number."""
    parts = [xr.Dataset({"firing_frequency": ("latent", np.full(width, 0.5))}) for width in (2, 4)]
    combined = combine(parts, [Axis("expansion", {"expansion": (1, 2)})])
    assert combined["latent"].values.tolist() == [0, 1, 2, 3]
    assert combined["firing_frequency"].sel(expansion=2).values.tolist() == [0.5] * 4
    found = combined["firing_frequency"].sel(expansion=1).values
    assert found[:2].tolist() == [0.5, 0.5] and np.isnan(found[2:]).all()


def test_texts_of_labels_that_a_part_lacks_are_empty(tmp_path: Path) -> None:
    for n in (1, 3):
        coords = {"component": [f"mlp_{i}" for i in range(n)], "kind": ("component", ["mlp"] * n)}
        write(xr.Dataset({"x": ("component", np.ones(n))}, coords), tmp_path / str(n))
    parts = [open_lazily(tmp_path / str(n)) for n in (1, 3)]
    cube = combine(parts, [Axis("n_layers", {"n_layers": (1, 3)})])
    assert cube["kind"].values.tolist() == [["mlp", "", ""], ["mlp"] * 3]
    np.testing.assert_array_equal(cube["x"], [[1, np.nan, np.nan], [1, 1, 1]])


def test_other_images_are_a_union_too_and_never_aligned_by_position() -> None:
    parts = [xr.Dataset({"x": ("image", [1.0, 2.0])}, {"image": ids}) for ids in (["a", "b"], ["b", "c"])]
    cube = combine(parts, [Axis("seed", {"seed": (0, 1)})])
    assert cube["x"].sel(seed=1, image="b").item() == 1.0
    assert np.isnan(cube["x"].sel(seed=0, image="c"))


def test_what_the_axis_says_replaces_what_the_parts_say() -> None:
    parts = [xr.Dataset({"x": ((), i)}, {"layer": 7}) for i in range(2)]
    cube = combine(parts, [Axis("layer", {"layer": (0, 1)})])
    assert cube["layer"].values.tolist() == [0, 1]


def test_a_gathered_grid_stays_lazy(tmp_path: Path) -> None:
    for i in range(2):
        write(xr.Dataset({"x": ("image", np.arange(4) + i)}), tmp_path / str(i))
    cube = combine([open_lazily(tmp_path / str(i)) for i in range(2)], [Axis("a", {"a": (0, 1)})])
    assert isinstance(cube["x"].data, da.Array)


def test_the_description_for_the_manifest() -> None:
    found = describe(activations(2).assign_attrs(site="q"))
    assert found["dims"] == {"image": 2, "layer": 2, "token": 3, "class": 2}
    assert found["coords"]["label"] == ["image"]
    assert found["variables"]["resid_post"] == {"dims": ["image", "layer", "token"], "dtype": "float32"}


def test_places_that_are_attributes_stay_known_when_gathered() -> None:
    """The axis of a renamed grid over layers has indices alone, and attributes that differ are dropped."""
    parts = [
        xr.Dataset({"W_dec": ("latent", [1.0])}, attrs={"site": "resid_post", "layer": layer, "k": 8})
        for layer in (2, 5)
    ]
    found = combine(parts, [Axis("depth", {"depth": (2, 5)})])
    assert found["layer"].dims == ("depth",) and found["layer"].values.tolist() == [2, 5]
    assert found.attrs == {"site": "resid_post", "k": 8}
    named = combine(parts, [Axis("depth", {"layer": (2, 5), "k": (8, 8)})])
    assert set(named.coords) == {"depth", "layer", "k"}
