from __future__ import annotations

import pytest

from prisma_steps.claims.table import Row
from prisma_steps.report.page import Page, render_page
from tests.report.test_page import HOSTILE, Reader

HOLDS = Row(
    "it is so", "vit.x.max()", "0.9", "a paper", "within 0.1 of 0.9", "0.95", "± 0.01, n = 3", "holds", ""
)


def page(*claims: Row) -> str:
    return render_page(Page("Sprites", "", "", [], [], "today", claims=claims))


def text(*claims: Row) -> str:
    return " ".join(Reader(page(*claims)).text.split())


def test_a_page_without_claims_says_nothing_of_them() -> None:
    assert "Claims" not in text() and "claims" not in page()


def test_all_that_is_known_of_a_claim_is_shown() -> None:
    assert (
        "ClaimVerdictReproducedOver seedsExpectedPublishedValue it is so holds 0.95 ± 0.01, n = 3 "
        "within 0.1 of 0.9 0.9 (a paper) Show vit.x.max()"
    ) in text(HOLDS)


@pytest.mark.parametrize(
    ("state", "colour"),
    [("holds", "done"), ("fails", "failed"), ("error", "failed"), ("not yet run", "other")],
)
def test_verdicts_are_told_in_words_and_in_colour(state: str, colour: str) -> None:
    found = page(HOLDS._replace(state=state, reproduced="", spread="", reason="for a reason"))
    assert f'<strong class="{colour}">{state}</strong>' in found
    assert "for a reason" in found and "0.95" not in found


def test_what_is_not_there_is_a_dash() -> None:
    bare = HOLDS._replace(published="", source="", reproduced="", spread="")
    assert "holds – – within 0.1 of 0.9 – Show" in text(bare)


def test_no_text_becomes_markup() -> None:
    plain = Reader(page(HOLDS._replace(reason="why")))
    hostile = Reader(page(Row(*[HOSTILE] * 7, "holds", HOSTILE)))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert hostile.text.count("<script>alert('1')</script>") == 8
