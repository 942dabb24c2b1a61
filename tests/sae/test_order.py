from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prisma_steps.sae.order import TokenOrder


@given(
    n_stored=st.integers(1, 60), extra=st.integers(0, 60), epochs=st.integers(0, 3), batch=st.integers(1, 80)
)
def test_every_token_is_served_exactly_once_an_epoch(n_stored, extra, epochs, batch):
    n_served = epochs * n_stored + min(extra, n_stored) or 1
    order = TokenOrder(n_stored, n_served, batch, seed=0)
    batches = [order.batch(index).tolist() for index in range(order.n_batches)]
    served = [token for batch_tokens in batches for token in batch_tokens]
    assert len(served) == n_served
    assert all(0 < len(batch_tokens) <= batch for batch_tokens in batches)
    for start in range(0, n_served, n_stored):
        epoch = Counter(served[start : start + n_stored])
        assert set(epoch.values()) == {1}
    seen = [order.tokens_seen(done) for done in range(order.n_batches + 1)]
    assert seen == [sum(map(len, batches[:done])) for done in range(order.n_batches + 1)]


def test_batches_of_an_epoch_are_equal_up_to_one_token():
    order = TokenOrder(n_stored=100, n_served=100, batch_size=33, seed=0)
    assert [len(order.batch(index)) for index in range(order.n_batches)] == [25, 25, 25, 25]


def test_epochs_and_seeds_have_orders_of_their_own():
    def served(seed, epoch):
        return tuple(TokenOrder(50, 200, 50, seed).batch(epoch).tolist())

    orders = [served(seed, epoch) for seed in (0, 1) for epoch in range(4)]
    assert len(set(orders)) == len(orders)
    assert served(0, 2) == orders[2]


@pytest.mark.parametrize("index", [0, 3, 7])
def test_a_batch_depends_on_its_index_alone(index):
    order = TokenOrder(50, 150, 20, seed=5)
    expected = TokenOrder(50, 150, 20, seed=5).batch(index).tolist()
    order.batch(8)
    assert order.batch(index).tolist() == expected
