from __future__ import annotations

from pathlib import Path

import pytest

from prisma_steps.data.pairing import chosen_classes, listed_pairs, pair_up, places
from prisma_steps.step import StepError


def test_pairs_are_of_two_classes_and_use_images_once() -> None:
    assert list(pair_up(range(7), [0, 0, 0, 1, 2, 1, 0])) == [(0, 3), (1, 4), (2, 5)]


def test_images_are_taken_only_as_pairs_are_asked_for() -> None:
    taken = iter(range(100))
    pairs = pair_up(taken, [0, 1] * 50)
    assert next(pairs) == (0, 1)
    assert next(taken) == 2


def write(folder: Path, text: str) -> Path:
    (folder / "pairs.csv").write_text(text)
    return folder


def test_a_file_of_pairs(tmp_path: Path) -> None:
    rows = listed_pairs(write(tmp_path, "clean,corrupted,corrupted_class\na,c,dog\nb,a,cat\n"))
    assert places(rows, ["a", "b", "c"]).tolist() == [[0, 2], [1, 0]]
    assert chosen_classes(rows, ["cat", "dog"]).tolist() == [[-1, 1], [-1, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clean;corrupted\na;b\n", "has the columns clean;corrupted, expected clean, corrupted"),
        ("clean,corrupted\n", "has no rows"),
        ("clean,corrupted,weight\na,b,1\n", "expected clean, corrupted"),
        ("clean,corrupted\na,b\nb,\n", "line 3: a value is missing"),
    ],
)
def test_a_file_of_something_else(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(StepError, match=message):
        listed_pairs(write(tmp_path, text))
    with pytest.raises(StepError, match="holds no pairs.csv"):
        listed_pairs(tmp_path / "elsewhere")


def test_rows_that_name_nothing(tmp_path: Path) -> None:
    ids = ["cat-1", "cat-2"]
    with pytest.raises(StepError, match="line 2: cat-3 is none of the 2 images. Did you mean cat-2?"):
        places(listed_pairs(write(tmp_path, "clean,corrupted\ncat-1,cat-3\n")), ids)
    with pytest.raises(StepError, match="line 2: the image cat-1 is paired with itself"):
        places(listed_pairs(write(tmp_path, "clean,corrupted\ncat-1,cat-1\n")), ids)
    rows = listed_pairs(write(tmp_path, "clean,corrupted,clean_class,corrupted_class\ncat-1,cat-2,cat,dig\n"))
    with pytest.raises(StepError, match="line 2: the model has no class 'dig'. Did you mean dog?"):
        chosen_classes(rows, ["cat", "dog"])
    rows = listed_pairs(write(tmp_path, "clean,corrupted,clean_class,corrupted_class\ncat-1,cat-2,cat,cat\n"))
    with pytest.raises(StepError, match="clean_class and corrupted_class are both cat"):
        chosen_classes(rows, ["cat", "dog"])
