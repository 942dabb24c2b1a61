"""Compiled kernels against plain NumPy in float64, at sizes that fill no vector and no tile."""

from __future__ import annotations

import numba
import numpy as np
import pytest
import torch

from prisma_steps.sae import kernels, sparse_kernels
from prisma_steps.threads import array, in_parallel

N_TOKENS, N_LATENTS, WIDTH = 45, 1100, 37
DTYPES = [torch.float32, torch.bfloat16]
#: What a result may be off by: bfloat16 has 8 significant bits; float32 adds up to 45 numbers.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-8}


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator)


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def precise(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


def close(found: torch.Tensor, expected: np.ndarray, dtype: torch.dtype = torch.float32) -> None:
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(precise(found), expected, rtol=tolerance, atol=tolerance)


# --- threads


@numba.njit(nogil=True)
def count_visits(first, last, visits):
    for i in range(first, last):
        visits[i] += 1


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [0, 1, 7, 1000])
@pytest.mark.parametrize("least", [1, 300])
def test_each_item_is_computed_once_by_any_number_of_threads(count, least):
    visits = torch.zeros(count, dtype=torch.int64)
    in_parallel(count_visits, count, visits, least=least)
    assert visits.tolist() == [1] * count


@pytest.mark.usefixtures("threads")
def test_what_a_kernel_raises_in_a_thread_of_its_own_is_raised():
    def fails(*_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        in_parallel(fails, 10)


# --- bfloat16


@numba.njit
def there_and_back(values, narrow, wide):
    for i in range(len(values)):
        narrow[i] = kernels.narrowed(values[i], narrow)
        wide[i] = kernels.widened(narrow[i])


def test_bfloat16_is_rounded_as_torch_rounds_it(draw):
    halfway = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 0.0, -0.0, 3.4e38, 1e-40])
    special = torch.tensor([float("inf"), float("-inf"), float("nan")])
    full_nan = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    values = torch.cat([halfway, special, full_nan, 1e3 * draw(1000)])
    narrow, wide = torch.empty(len(values), dtype=torch.bfloat16), torch.empty(len(values))
    there_and_back(array(values), array(narrow), array(wide))
    expected = values.to(torch.bfloat16)
    torch.testing.assert_close(narrow, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(wide, expected.float(), rtol=0, atol=0, equal_nan=True)


# --- dense


def test_residuals(dtype, draw):
    y, y_hat, b_dec = draw(N_TOKENS, WIDTH), draw(N_TOKENS, WIDTH).to(dtype), draw(WIDTH)
    gradient, errors = torch.empty(N_TOKENS, WIDTH, dtype=dtype), torch.empty(N_TOKENS)
    in_parallel(kernels.residuals, N_TOKENS, y, y_hat, b_dec, np.float32(0.3), gradient, errors)
    expected = precise(y_hat) + precise(b_dec) - precise(y)
    close(gradient, 0.3 * expected, dtype)
    close(errors, (expected**2).sum(1))


@pytest.mark.usefixtures("threads")
def test_mask(dtype, draw):
    latents, gradient = draw(N_TOKENS, N_LATENTS).relu().to(dtype), draw(N_TOKENS, N_LATENTS).to(dtype)
    latents[0, :3] = -0.0
    masked, firings = gradient.clone(), torch.empty(N_LATENTS, dtype=torch.int32)
    sums, gradient_sums = torch.empty(N_LATENTS), torch.empty(N_LATENTS)
    in_parallel(
        kernels.mask, N_LATENTS, latents, masked, np.float32(0.2), firings, sums, gradient_sums, least=64
    )
    expected = np.where(precise(latents) > 0, precise(gradient) + 0.2, 0)
    close(masked, expected, dtype)
    close(gradient_sums, expected.sum(0))
    close(sums, precise(latents).sum(0))
    assert firings.tolist() == (precise(latents) > 0).sum(0).tolist()


@pytest.mark.usefixtures("threads")
def test_column_sums(dtype, draw):
    weights, values, sums = draw(N_TOKENS), draw(N_TOKENS, WIDTH).to(dtype), torch.empty(WIDTH)
    in_parallel(kernels.column_sums, WIDTH, weights, values, sums, least=5)
    close(sums, precise(weights) @ precise(values))


@pytest.mark.usefixtures("threads")
def test_transpose(dtype, draw):
    source, target = draw(WIDTH, N_LATENTS).to(dtype), torch.empty(N_LATENTS, WIDTH, dtype=dtype)
    in_parallel(kernels.transpose, N_LATENTS, source, target, least=32)
    assert target.equal(source.T)


# --- sparse


def selected(latents: torch.Tensor, k: int) -> list[list[int]]:
    """Indices that ``select`` keeps, checked to come with their values."""
    n = len(latents)
    counts, indices = torch.empty(n, dtype=torch.int64), torch.empty(n, k, dtype=torch.int32)
    values = torch.empty(n, k)
    bits = latents.view(torch.int32 if latents.dtype is torch.float32 else torch.int16)
    in_parallel(sparse_kernels.select, n, bits, latents, k, counts, indices, values)
    kept = [indices[token, :count] for token, count in enumerate(counts.tolist())]
    for token, places in enumerate(kept):
        assert values[token, : len(places)].equal(latents[token, places.long()].float())
    return [places.tolist() for places in kept]


def largest(latents: torch.Tensor, k: int) -> list[list[int]]:
    """The same by sorting: larger first, then the lower index."""
    rows = precise(latents).tolist()
    orders = [sorted(range(len(row)), key=lambda j, row=row: (-row[j], j))[:k] for row in rows]
    return [sorted(j for j in order if row[j] > 0) for row, order in zip(rows, orders, strict=True)]


@pytest.mark.parametrize("n_latents", [1, 31, 32, 33, 77, 300])
@pytest.mark.parametrize("k", [1, 2, 16, 300])
def test_select_keeps_the_largest(dtype, draw, n_latents, k):
    latents, k = draw(20, n_latents).relu().to(dtype), min(k, n_latents)
    assert selected(latents, k) == largest(latents, k)


@pytest.mark.parametrize("k", [1, 5, 40, 100])
def test_of_equals_select_keeps_the_lower_index(dtype, k):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randint(0, 4, (30, 100), generator=generator).to(dtype)
    latents[0], latents[1], latents[2, 50:] = 1.0, 0.0, 0.0
    assert selected(latents, k) == largest(latents, k)
    assert selected(latents, k)[0] == list(range(k))


def test_select_takes_nothing_where_nothing_is_positive(dtype):
    latents = torch.tensor([[0.0, -0.0, 0.0, 0.0], [0.0, -0.0, 2.0, 0.0]], dtype=dtype)
    assert selected(latents, 3) == [[], [2]]


@pytest.mark.parametrize("n_latents", [1, 31, 33, 300])
def test_count_and_compress_find_what_fires(dtype, draw, n_latents):
    latents = (draw(20, n_latents) - 0.5).relu().to(dtype)
    latents[0], latents[1, 0], latents[2] = 0.0, -0.0, 1.0
    counts = torch.empty(20, dtype=torch.int64)
    in_parallel(sparse_kernels.count, 20, latents, counts)
    assert counts.equal((latents > 0).sum(1))
    starts = counts.cumsum(0) - counts
    indices, values = torch.empty(int(counts.sum()), dtype=torch.int32), torch.empty(int(counts.sum()))
    in_parallel(sparse_kernels.compress, 20, latents, starts, indices, values)
    tokens, expected = (latents > 0).nonzero(as_tuple=True)
    assert indices.long().equal(expected)
    assert values.equal(latents[tokens, expected].float())


@pytest.fixture
def codes(draw):
    """Latents of tokens, 0 to 4 each, dense and as slots with room for 5 a token."""
    rng = np.random.default_rng(2)
    room, n_latents = 5, 23
    dense = torch.zeros(N_TOKENS, n_latents)
    starts = room * torch.arange(N_TOKENS)
    stops, indices = starts.clone(), torch.full((room * N_TOKENS,), -1, dtype=torch.int32)
    values = torch.full((room * N_TOKENS,), torch.nan)
    for token in range(N_TOKENS):
        which = np.sort(rng.choice(n_latents, rng.integers(0, room), replace=False))
        stops[token] += len(which)
        slots = slice(int(starts[token]), int(stops[token]))
        indices[slots] = torch.from_numpy(which).int()
        values[slots] = draw(len(which)).abs()
        dense[token, which] = values[slots]
    return dense, (starts, stops, indices, values)


def test_decode(dtype, draw, codes):
    dense, sparse = codes
    decoder, b_dec, y = draw(dense.shape[1], WIDTH).to(dtype), draw(WIDTH), draw(N_TOKENS, WIDTH)
    gradient, errors = torch.empty(N_TOKENS, WIDTH, dtype=dtype), torch.empty(N_TOKENS)
    slopes = torch.zeros(len(sparse[3]))
    arguments = (*sparse, decoder, b_dec, y, np.float32(0.3), np.float32(0.1), gradient, errors, slopes)
    in_parallel(sparse_kernels.decode, N_TOKENS, *arguments)
    error = precise(dense) @ precise(decoder) + precise(b_dec) - precise(y)
    close(gradient, 0.3 * error, dtype)
    close(errors, (error**2).sum(1))
    of_latents = 0.3 * error @ precise(decoder).T + 0.1
    starts, stops, indices, _ = sparse
    for token in range(N_TOKENS):
        slots = slice(int(starts[token]), int(stops[token]))
        close(slopes[slots], of_latents[token, indices[slots].numpy()])


@pytest.mark.usefixtures("threads")
def test_sums_over_tokens_of_each_latent(dtype, draw, codes):
    dense, (starts, stops, indices, values) = codes
    n_latents, rows = dense.shape[1], draw(N_TOKENS, WIDTH).to(dtype)
    offsets = torch.empty(n_latents + 1, dtype=torch.int64)
    slots, tokens = (torch.empty(len(values), dtype=torch.int32) for _ in range(2))
    sparse_kernels.group(*map(array, (starts, stops, indices, offsets, slots, tokens)))
    for latent in range(n_latents):
        of_latent = tokens[offsets[latent] : offsets[latent + 1]]
        assert of_latent.tolist() == dense[:, latent].nonzero().flatten().tolist()
    outer, sums = torch.empty(n_latents, WIDTH), torch.empty(n_latents)
    in_parallel(sparse_kernels.outer_sums, n_latents, offsets, slots, tokens, values, rows, outer)
    in_parallel(sparse_kernels.sums_by_latent, n_latents, offsets, slots, values, sums)
    close(outer, precise(dense).T @ precise(rows))
    close(sums, precise(dense).sum(0))
