"""Tokens served from stored activations: counted, aligned, in bounded memory, and never silently wrong."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from prisma_steps import datasets
from prisma_steps.axes import Axis
from prisma_steps.hypercube import combine
from prisma_steps.sae import stored as stored_module
from prisma_steps.sae.stored import StoredTokens
from prisma_steps.sae.stream import TokenStream
from prisma_steps.step import StepError

N_IMAGES, LAYERS, N_TOKENS, D_MODEL = 37, (1, 3), 5, 4
#: Of an image in one layer, in float32.
IMAGE_BYTES = N_TOKENS * D_MODEL * 4
#: Tokens of the buffer: groups of one section, of several, and all in one.
BUFFERS = (1, 50, 1000)


@pytest.fixture(autouse=True)
def small_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4 images in one layer: 9 of them, and one of a single image."""
    monkeypatch.setattr(stored_module, "_SECTION_BYTES", 4 * IMAGE_BYTES)


def activations(dtype: Any = np.float32) -> xr.Dataset:
    """Each vector begins with its image, layer and token; of ``mlp_out`` they are negative."""
    index = np.stack(np.meshgrid(range(N_IMAGES), LAYERS, range(N_TOKENS), indexing="ij"), -1)
    values = np.concatenate([index, np.ones_like(index[..., :1])], -1).astype(dtype)
    dims = ("image", "layer", "token", "d_model")
    return xr.Dataset(
        {"resid_post": (dims, values), "mlp_out": (dims, -values)},
        {
            "image": [f"i{number}" for number in range(N_IMAGES)],
            "layer": list(LAYERS),
            "token_kind": ("token", np.array(["cls"] + ["patch"] * (N_TOKENS - 1))),
        },
    )


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("activations") / "data.zarr"
    datasets.write(activations(), path)
    return path


@pytest.fixture
def values(on_disk: Path) -> xr.DataArray:
    return datasets.open_dataset(on_disk)["resid_post"].sel(layer=3)


def stream(stored: Any, buffer_tokens: int = 50, **changes: int) -> TokenStream:
    options = {"n_served": len(stored), "batch_size": 17, "seed": 0, **changes}
    return TokenStream(stored, buffer_tokens=buffer_tokens, **options)


def served(stored: Any, buffer_tokens: int = 50, **changes: int) -> list[tuple[torch.Tensor, ...]]:
    with stream(stored, buffer_tokens, **changes) as tokens:
        return [tokens.batch(index) for index in range(tokens.n_batches)]


def rows(batches: list[tuple[torch.Tensor, ...]]) -> list[tuple[float, ...]]:
    """Every token of the first variable, as (image, layer, token, …)."""
    return [tuple(row) for batch in batches for row in batch[0].flatten(1).tolist()]


# --- which tokens


@pytest.mark.parametrize("buffer_tokens", BUFFERS)
@pytest.mark.parametrize(("tokens", "which"), [("all", range(5)), ("cls", [0]), ("patch", range(1, 5))])
def test_every_token_is_served_exactly_once_an_epoch(values, tokens, which, buffer_tokens):
    stored = StoredTokens([values], tokens)
    batches = served(stored, buffer_tokens, n_served=3 * len(stored))
    every = Counter((image, 3, token, 1) for image in range(N_IMAGES) for token in which)
    found = rows(batches)
    epochs = [found[start : start + len(stored)] for start in range(0, len(found), len(stored))]
    assert [Counter(epoch) for epoch in epochs] == [every] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert all(batch[0].shape[0] in (len(batches[0][0]), len(batches[0][0]) + 1) for batch in batches)


def test_tokens_of_a_kind_may_lie_apart(on_disk):
    kinds = np.array(["patch", "cls", "patch", "patch", "cls"])
    data = datasets.open_dataset(on_disk).assign_coords(token_kind=("token", kinds))
    found = rows(served(StoredTokens([data["resid_post"].sel(layer=3)], "patch")))
    assert sorted(found) == [(image, 3, token, 1) for image in range(N_IMAGES) for token in (0, 2, 3)]


@pytest.mark.parametrize("buffer_tokens", BUFFERS)
@pytest.mark.parametrize("n_served", [20, 185, 185 + 90])
def test_a_budget_in_tokens_is_kept_exactly_and_repeats_none(values, n_served, buffer_tokens):
    found = rows(served(StoredTokens([values], "all"), buffer_tokens, n_served=n_served))
    assert len(found) == n_served
    assert max(Counter(found[:185]).values()) == 1
    assert max(Counter(found[185:]).values(), default=1) == 1


@pytest.mark.parametrize("buffer_tokens", BUFFERS)
def test_layers_and_variables_stay_aligned(on_disk, buffer_tokens):
    """A crosscoder's input, a transcoder's target, and one whose layers come in another order of dims."""
    data = datasets.open_dataset(on_disk)
    crossed = data["resid_post"].load().transpose("image", "token", "layer", "d_model")
    stored = StoredTokens([data["resid_post"], data["mlp_out"].sel(layer=1), crossed], "patch")
    both, target, other = (torch.cat(parts) for parts in zip(*served(stored, buffer_tokens), strict=True))
    assert both.shape == (4 * N_IMAGES, 2, D_MODEL)
    assert target.shape == (4 * N_IMAGES, D_MODEL)
    assert both[:, 0].equal(-target)
    assert both[:, 1, [0, 2]].equal(-target[:, [0, 2]])
    assert (both[:, 1, 1] == 3).all()
    assert other.equal(both)


@pytest.mark.parametrize("buffer_tokens", BUFFERS)
@pytest.mark.parametrize("first", [0, 4, 11, 18])
def test_batches_are_the_same_whatever_one_starts_from(values, first, buffer_tokens):
    stored = StoredTokens([values], "all")
    expected = served(stored, buffer_tokens, n_served=300)
    with stream(stored, buffer_tokens, n_served=300) as tokens:
        for index in [*range(first, tokens.n_batches), 2, 0, 9]:
            assert tokens.batch(index)[0].equal(expected[index][0])


def test_a_batch_larger_than_a_group_is_made_of_several(values):
    found = served(StoredTokens([values], "all"), buffer_tokens=1, batch_size=1000)
    assert len(found) == 1
    assert len(set(rows(found))) == 185


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_tokens_keep_the_precision_they_are_stored_in(tmp_path, dtype):
    datasets.write(activations(dtype), tmp_path / "data.zarr")
    stored = StoredTokens([datasets.open_dataset(tmp_path / "data.zarr")["resid_post"].sel(layer=1)], "all")
    batches = served(stored)
    assert batches[0][0].dtype == torch.from_numpy(np.empty(0, dtype)).dtype
    assert len(set(rows(batches))) == 185


def test_activations_in_parts_are_served_as_the_whole_is(tmp_path, values):
    for number, (begin, end) in enumerate([(0, 9), (9, 30), (30, 37)]):
        datasets.write(activations().isel(image=slice(begin, end)), tmp_path / str(number))
    parts = [datasets.open_dataset(tmp_path / str(number)) for number in range(3)]
    joined = combine(parts, [Axis("part", {"part": (0, 1, 2)}, "image")])["resid_post"].sel(layer=3)
    assert not joined.variable._in_memory
    found, expected = (rows(served(StoredTokens([whole], "patch"))) for whole in (joined, values))
    assert found == expected


def test_the_order_does_not_depend_on_how_the_data_lie_on_disk(tmp_path, values, monkeypatch):
    """Nor on whether they are a dask array: the size of shards comes from settings that enter no key."""
    monkeypatch.setattr(datasets, "CHUNK_BYTES", 3 * IMAGE_BYTES)
    monkeypatch.setattr(datasets, "SHARD_BYTES", 6 * IMAGE_BYTES)
    datasets.write(activations(), tmp_path / "data.zarr")
    other = datasets.open_lazily(tmp_path / "data.zarr")["resid_post"].sel(layer=3)
    assert other.chunksizes["image"] == (6,) * 6 + (1,)
    found, expected = (rows(served(StoredTokens([array], "all"))) for array in (other, values))
    assert found == expected


# --- the sample


def test_the_sample_is_everything_where_everything_fits(values):
    with stream(StoredTokens([values], "patch"), 1000) as tokens:
        (sample,) = tokens.sample(500)
    np.testing.assert_array_equal(sample, values.values[:, 1:].reshape(-1, D_MODEL))


def test_the_sample_is_what_is_served_first(values):
    stored = StoredTokens([values], "all")
    first = rows(served(stored))
    # Ten sections in four groups: two of 20 tokens are the first.
    for n_tokens, expected in [(13, 13), (500, 40)]:
        with stream(stored) as tokens:
            sample = rows([tokens.sample(n_tokens)])
            assert tokens.batch(0)[0].tolist() == [list(row) for row in first[: len(tokens.batch(0)[0])]]
        assert sorted(sample) == sample
        assert set(sample) == set(first[:expected])


# --- what is read, and when


class Source:
    """A source that notes which images were read and which tables are alive."""

    n_images, tokens_per_image, section_images = 40, 2, 4

    def __init__(self, fail_at: int | None = None) -> None:
        self.log: list[int] = []
        self.rooms: list[weakref.ref[torch.Tensor]] = []
        self.fail_at = fail_at
        self.threads: set[threading.Thread] = set()
        self.permits = threading.Semaphore(1000)

    def __len__(self) -> int:
        return self.n_images * self.tokens_per_image

    def room(self, n_tokens: int, *, pinned: bool = False) -> tuple[torch.Tensor, ...]:
        assert not pinned or torch.cuda.is_available()
        table = torch.full((n_tokens, 1), -1.0)
        self.rooms.append(weakref.ref(table))
        return (table,)

    def read(self, images: slice, into: tuple[torch.Tensor, ...]) -> None:
        self.permits.acquire()
        self.threads.add(threading.current_thread())
        self.log.append(images.start)
        if self.fail_at == images.start:
            raise StepError(f"images {images.start} cannot be read")
        tokens = torch.arange(2 * images.start, 2 * images.stop, dtype=torch.float32)
        into[0].copy_(tokens[:, None])

    def alive(self) -> list[int]:
        """The sizes of the tables that are held by anyone."""
        return [len(table) for reference in self.rooms if (table := reference()) is not None]


def test_no_more_than_two_groups_are_in_memory():
    source, seen = Source(), []
    with stream(source, 16, n_served=240, batch_size=7) as tokens:
        for index in range(tokens.n_batches):
            (batch,) = tokens.batch(index)
            seen += batch.flatten().tolist()
            # Two groups of two sections, and the batch itself.
            assert sorted(source.alive()) in ([len(batch), 16], [len(batch), 16, 16])
            del batch
    assert [Counter(seen[at : at + 80]) for at in (0, 80, 160)] == [Counter(map(float, range(80)))] * 3
    assert len(source.log) == 30


def test_the_next_group_is_read_while_one_is_served():
    source = Source()
    with stream(source, 16) as tokens:
        tokens.batch(0)
        assert tokens._next is not None
        tokens._next[1].result(timeout=60)
        assert len(source.log) == 4
        tokens.batch(0)
        assert len(source.log) == 4
    assert source.threads.isdisjoint({threading.current_thread()})


def test_one_group_is_read_once_for_all_epochs():
    source = Source()
    batches = served(source, 1000, n_served=3 * 80 + 7)
    assert len(rows(batches)) == 247
    assert sorted(source.log) == list(range(0, 40, 4))


def test_going_on_reads_what_is_still_served_and_no_more():
    whole, rest = Source(), Source()
    served(whole, 16)
    with stream(rest, 16) as tokens:
        for index in (3, 4):
            tokens.batch(index)
    # Of five batches of 16 tokens in five groups, the last two.
    assert rest.log == whole.log[6:]


def test_a_short_run_reads_just_its_groups():
    source = Source()
    served(source, 16, n_served=20)
    assert len(source.log) == 4


# --- what goes wrong


def test_an_error_in_reading_comes_out_and_the_thread_ends():
    source = Source(fail_at=20)
    with pytest.raises(StepError, match="images 20 cannot be read"), stream(source, 16) as tokens:
        for index in range(tokens.n_batches):
            tokens.batch(index)
    assert not any(thread.is_alive() for thread in source.threads)


def test_an_interrupt_ends_the_thread_after_the_section_it_reads():
    source = Source()
    source.permits = threading.Semaphore(7)  # a group, and two of the five sections of the next
    with pytest.raises(KeyboardInterrupt), stream(source, 40) as tokens:

        def read_on() -> None:
            tokens._closing.wait()
            source.permits.release(100)

        threading.Thread(target=read_on).start()
        tokens.batch(0)
        raise KeyboardInterrupt
    assert len(source.log) <= 8
    assert not any(thread.is_alive() for thread in source.threads)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "data.zarr"
    datasets.write(activations(), path)
    for shard in (path / "resid_post" / "c").rglob("*"):
        if shard.is_file():
            shard.write_bytes(shard.read_bytes()[:-40])
    stored = StoredTokens([datasets.open_dataset(path)["resid_post"].sel(layer=1)], "all")
    with pytest.raises(StepError, match=r"resid_post: images \d+ to \d+ cannot be read: .* verify"):
        served(stored)


def test_variables_of_other_images_or_tokens_are_refused(values):
    with pytest.raises(StepError, match="resid_post and resid_post do not have the same images"):
        StoredTokens([values, values.isel(image=slice(None, None, -1))], "all")
    with pytest.raises(StepError, match="do not have the same token_kinds"):
        StoredTokens([values, values.isel(token=slice(1, None))], "all")
    with pytest.raises(StepError, match="the site has no such token, only cls, patch"):
        StoredTokens([values], "register")
