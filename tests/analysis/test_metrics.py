from __future__ import annotations

from math import log

import pytest
import torch

from prisma_steps.analysis.metrics import Metrics, normalise, normalised

CLASSES = torch.tensor([[0, 1], [2, 0]])


def test_known_answers() -> None:
    """Two classes as likely as 3 : 1, and the third never."""
    clean = torch.tensor([[log(3.0), 0.0, -1e9], [0.0, 0.0, 0.0]])
    found = Metrics(CLASSES, clean)(torch.tensor([[0.0, 0.0, -1e9]]), torch.tensor([0]))
    assert found["logit_difference"].item() == 0
    assert found["probability"].item() == pytest.approx(0.5)
    assert found["ce"].item() == pytest.approx(log(2))
    assert found["kl"].item() == pytest.approx(0.75 * log(1.5) + 0.25 * log(0.5))


def test_cells_are_of_their_pairs() -> None:
    clean = torch.tensor([[5.0, 3.0, 1.0], [1.0, 2.0, 3.0]])
    cells = torch.tensor([[5.0, 3.0, 1.0], [5.0, 3.0, 1.0], [1.0, 2.0, 3.0]])
    found = Metrics(CLASSES, clean)(cells, torch.tensor([0, 1, 1]))
    assert found["logit_difference"].tolist() == [2.0, -4.0, 2.0]
    assert (found["kl"] > 1e-3).tolist() == [False, True, False]
    torch.testing.assert_close(found["ce"], -found["probability"].log())


def test_bfloat16_logits_are_measured_in_float32() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    pair = torch.tensor([0, 0, 1, 1])
    found = Metrics(CLASSES, logits[:2])(logits, pair)
    expected = Metrics(CLASSES, logits[:2].double())(logits.double(), pair)
    for name, value in found.items():
        assert value.dtype is torch.float32
        torch.testing.assert_close(value, expected[name].float())


def test_normalise_puts_clean_at_1_and_corrupted_at_0() -> None:
    clean, corrupted = torch.tensor([4.0, 1.0]), torch.tensor([-4.0, 3.0])
    cells = torch.tensor([[[4.0, -4.0, 0.0]], [[1.0, 3.0, 7.0]]])
    assert normalise(cells, clean, corrupted).tolist() == [[[1.0, 0.0, 0.5]], [[1.0, 0.0, -2.0]]]
    both = normalised({"ce": cells}, {"ce": clean}, {"ce": corrupted})
    assert torch.equal(both["ce"], normalise(cells, clean, corrupted))


def test_nothing_can_be_restored_where_both_runs_are_equal() -> None:
    found = normalise(torch.ones(2, 3), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]))
    assert found[0].isnan().all()
    assert found[1].tolist() == [0.0, 0.0, 0.0]
