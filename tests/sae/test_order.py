from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prisma_steps.sae.order import Batches, GroupOrder

orders = st.builds(
    GroupOrder,
    n_images=st.integers(1, 40),
    tokens_per_image=st.integers(1, 5),
    section_images=st.sampled_from([1, 2, 4, 8]),
    buffer_tokens=st.integers(1, 250),
    seed=st.integers(0, 3),
)


def served(order: GroupOrder, epoch: int) -> list[tuple[int, int]]:
    """(image, token) of a whole epoch, in order."""
    found = []
    for index, group in enumerate(order.groups(epoch)):
        images = [
            image for number in group.sections for image in range(order.n_images)[order.section(number)]
        ]
        tokens = [(image, token) for image in images for token in range(order.tokens_per_image)]
        found += [tokens[row] for row in order.rows(epoch, index).tolist()]
    return found


# --- batches


@given(
    n_stored=st.integers(1, 60), extra=st.integers(0, 60), epochs=st.integers(0, 3), batch=st.integers(1, 80)
)
def test_batches_cover_every_epoch_once(n_stored, extra, epochs, batch):
    n_served = epochs * n_stored + min(extra, n_stored) or 1
    batches = Batches(n_stored, n_served, batch)
    places = [batches.place(index) for index in range(batches.n_batches)]
    covered = [(epoch, token) for epoch, start, stop in places for token in range(start, stop)]
    assert covered == [divmod(token, n_stored) for token in range(n_served)]
    assert all(0 < stop - start <= batch for _, start, stop in places)
    seen = [batches.tokens_seen(done) for done in range(batches.n_batches + 1)]
    sizes = [stop - start for _, start, stop in places]
    assert seen == [sum(sizes[:done]) for done in range(batches.n_batches + 1)]


def test_batches_of_an_epoch_are_equal_up_to_one_token():
    batches = Batches(n_stored=100, n_served=200, batch_size=33)
    sizes = [stop - start for _, start, stop in map(batches.place, range(batches.n_batches))]
    assert sizes == [25] * 8


# --- what is shuffled with what


@given(orders, st.integers(0, 3))
def test_every_token_is_served_exactly_once_an_epoch(order, epoch):
    every = {(image, token) for image in range(order.n_images) for token in range(order.tokens_per_image)}
    counts = Counter(served(order, epoch))
    assert counts.keys() == every
    assert set(counts.values()) == {1}


@given(orders, st.integers(0, 3))
def test_groups_lie_end_to_end_and_fit_in_the_buffer(order, epoch):
    groups = order.groups(epoch)
    total = order.n_images * order.tokens_per_image
    assert [group.start for group in groups] == [0, *(group.stop for group in groups[:-1])]
    assert groups[-1].stop == total
    assert len(groups) == order.n_groups
    section = order.section_images * order.tokens_per_image
    for group in groups:
        assert 0 < group.stop - group.start <= min(order.largest, total)
        assert list(group.sections) == sorted(set(group.sections))
    assert order.largest < order.buffer_tokens + section
    assert (order.n_groups == 1) == (total <= order.buffer_tokens or order.n_sections == 1)


@given(orders, st.integers(0, 3))
def test_an_order_depends_on_nothing_but_its_numbers(order, epoch):
    again = GroupOrder(**vars(order))
    assert served(again, epoch) == served(order, epoch)


def test_epochs_and_seeds_have_orders_of_their_own():
    def order(seed):
        return GroupOrder(n_images=64, tokens_per_image=3, section_images=2, buffer_tokens=40, seed=seed)

    found = [tuple(served(order(seed), epoch)) for seed in (0, 1) for epoch in range(4)]
    assert len(set(found)) == len(found)
    sections = {tuple(group.sections for group in order(0).groups(epoch)) for epoch in range(4)}
    assert len(sections) == 4


def test_neighbours_are_far_apart_and_a_group_is_from_all_over_the_data():
    order = GroupOrder(n_images=1024, tokens_per_image=8, section_images=4, buffer_tokens=2048, seed=0)
    tokens = served(order, 0)
    place = {token: number for number, token in enumerate(tokens)}
    gaps = torch.tensor(
        [abs(place[image, token] - place[image, token + 1]) for image, token in place if token < 7]
    )
    # Two of 2,048 places chosen at random are a third of them apart on average; 7,168 gaps, so that the mean
    # is off by less than 1 %, of images of 256 sections.
    assert gaps.double().mean().item() == pytest.approx(2048 / 3, rel=0.05)
    first = torch.tensor([image for image, _ in tokens[:2048]]).double()
    # The mean of 64 of 256 sections has a standard error of 1024/√12 · √((1 − 1/4) / 64) = 32.
    assert first.mean().item() == pytest.approx(512, abs=96)
